"""The card's sections without a chart: what each file says, as the words and rows that card.html lays out."""

from __future__ import annotations

from typing import Any

from autolora.attacks.also_flags import UNION, WORD
from autolora.attacks.verdicts import NAMES
from autolora.common.files import file_sha256, read_json
from autolora.training.axes import NO_ATTACK
from stages.card.svg import percent
from stages.evidence.checks import sixteen
from stages.evidence.files import FINETUNED, ONNX, Evidence

STAGES = ["prepare", "validate", "finetune", "merge", "evaluate", "export", "register"]
KINDS = {"pass": "pass", "warn": "warn", "fail": "fail", "not run": "none"}


# --- threat, attacks -------------------------------------------------------------------------------------------------


def threat(evidence: Evidence) -> dict[str, Any]:
    t = evidence.robustness["threat"]
    levels = f"{t['eps_255']:g}"
    may = {
        "linf": f"may move every colour value of every pixel by up to {levels} of 255 grey levels, each as it likes",
        "l2": f"may move the image by up to {t['eps']:g} in Euclidean length, where white minus black is 1",
        "l1": f"may move the image by up to {t['eps']:g} in the sum of all changes, where white minus black is 1",
    }[t["norm"]]
    eps = f"{t['eps']:.6g} of the pixel range" + (f", or {levels} grey levels of 255" if t["norm"] == "linf" else "")
    return {"may": may, "facts": [("Norm and radius", f"{radius(evidence.robustness)}"), ("eps", eps)]}


def radius(r: dict[str, Any]) -> str:
    norm = {"linf": "L∞", "l2": "L2", "l1": "L1"}[r["threat"]["norm"]]
    return f"{norm} {r['threat']['text'].split(':')[-1]}"


def attacks(evidence: Evidence) -> dict[str, Any]:
    """One row per attack: who still stands, and how many this attack took."""
    r = evidence.robustness
    other = r.get("baseline") or {}
    natural = {
        "none": other.get("clean_accuracy"),
        **{a["name"]: a["robust_accuracy"] for a in other.get("attacks", [])},
    }
    rows, before = [("no attack", percent(r["clean_accuracy"]), "", _share(natural["none"]))], r["clean_accuracy"]
    for attack in r["attacks"]:
        left = attack["robust_accuracy"]
        lost = f"{100 * (before - left):.1f} points"
        rows.append((f"after {attack['name']}", percent(left), lost, _share(natural.get(attack["name"]))))
        before = left
    head = ["", "Still right", "Taken by it", "Natural twin"]
    return {"head": head, "rows": rows} if other else {"head": head[:3], "rows": [row[:3] for row in rows]}


def beyond(evidence: Evidence) -> dict[str, Any] | None:
    """Other threats and corruptions on the same images, where params.yaml asked for them."""
    r = evidence.robustness
    if not r.get("also"):
        return None
    main = {"accuracy": r["robust_accuracy"], "ci95": r["ci95"], "baseline": {"accuracy": _of_twin(r)}}
    rows = [(radius(r), main), *((what_is_meant(row), row) for row in r["also"])]
    corrupted = next((row for row in r["also"] if row["what"] == WORD), None)
    return {
        "rows": [
            (name, percent(row["accuracy"]), _interval(row["ci95"]), _share(row["baseline"]["accuracy"]))
            for name, row in rows
        ],
        "trained": _trained_for(evidence.optional(FINETUNED).get("method")),
        "strengths": corrupted and corrupted["strengths"],
        "kinds": [_kind(kind) for kind in corrupted["kinds"]] if corrupted else [],
        "warnings": [f"{radius(row)}: {said}" for row in r["also"] for said in objections(row)],
    }


def _trained_for(method: str | None) -> str:
    return "this model was trained for " + ("none of them" if method in NO_ATTACK else "the first row alone")


def objections(row: dict[str, Any]) -> list[str]:
    """Of the checks under this threat; that there are few images, the interval says."""
    found = [c for c in sixteen(row.get("objections", [])) if c.number != 11]
    return [f"{c.title}: {c.detail}" for c in found]


def _kind(kind: dict[str, Any]) -> tuple[str, ...]:
    shares = [kind["accuracy"], *kind["by_severity"], kind["baseline"]]
    return (kind["name"].replace("_", " ").replace("jpeg", "JPEG"), *(f"{100 * share:.0f}" for share in shares))


def _of_twin(r: dict[str, Any]) -> float | None:
    return (r.get("baseline") or {}).get("robust_accuracy")


def _interval(bounds: list[float]) -> str:
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def what_is_meant(row: dict[str, Any]) -> str:
    if row["what"] == UNION:
        return "both threats" if len(row["threats"]) == 2 else f"all {len(row['threats'])} threats"
    return radius(row) if "threat" in row else f"corruptions, the mean of {len(row['kinds'])} at 5 severities"


def short_name(what: str) -> str:
    return {WORD: "under corruptions", UNION: "under all threats"}.get(what, f"at {what}")


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def twin(evidence: Evidence) -> dict[str, Any] | None:
    r = evidence.robustness
    natural, paired = r.get("baseline"), r.get("mcnemar")
    if not natural or not paired:
        return None
    return {
        "gain": f"{100 * (r['robust_accuracy'] - natural['robust_accuracy']):+.1f}",
        "price": f"{100 * (r['clean_accuracy'] - natural['clean_accuracy']):+.1f}",
        "only_model": paired["only_model"],
        "only_baseline": paired["only_baseline"],
        "p": p_text(paired["p"]),
    }


def p_text(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


# --- data -------------------------------------------------------------------------------------------------------------


def data(evidence: Evidence) -> dict[str, Any]:
    q, d = evidence.quality, evidence.robustness["data"]
    found = q["checks"]
    counts = {k: f"{v:,}" for k, v in q["images"].items()}
    parts = ", ".join(f"{counts[k]} {k}" for k in ("train", "val", "test") if k in counts)
    return {
        "kind": data_kind(evidence),
        "verdict": q["verdict"],
        "summary": f"{sum(c['passed'] for c in found.values())} of {len(found)} expectations hold.",
        "facts": [
            ("Data set", str(d["name"])),
            ("Images", f"{counts['used']} of {counts['found']} used: {parts}"),
            ("Attacked", _attacked(d, q["images"].get("test"))),
            ("Their ids", f"sha256 {d['ids_sha256']}"),
        ],
        "remarks": [*q["critical"], *q["warnings"]],
        "checks": [{"name": name, **_data_check(c)} for name, c in found.items()],
    }


def _attacked(data: dict[str, Any], there: int | None) -> str:
    if data["n"] == there:
        return f"all {there:,} of the {data['split']} part"
    drawn = "drawn evenly from the classes" if data["stratified"] else "not drawn by class"
    return f"{data['n']:,} of the {data['split']} part, {drawn}"


def data_kind(evidence: Evidence) -> str:
    return "fail" if evidence.quality["critical"] else "warn" if evidence.quality["warnings"] else "pass"


def _data_check(c: dict[str, Any]) -> dict[str, Any]:
    kind = "pass" if c["passed"] else "fail" if c["severity"] == "critical" else "warn"
    return {"kind": kind, "verdict": "holds" if c["passed"] else c["severity"], "failed": f"{c['failed']} of {c['of']}"}


# --- the file ---------------------------------------------------------------------------------------------------------


def parity(evidence: Evidence) -> dict[str, Any]:
    e = evidence.exported
    p = e["parity"]
    return {
        "facts": [
            ("Largest difference", f"{p['max_difference']:.1e} in a logit"),
            ("Labels that flip", _flips(evidence)),
            ("Batch sizes tried", ", ".join(str(b["batch"]) for b in p["batches"])),
            ("Stored attacks on the file", _withstand(e.get("replay"))),
            ("Square attack on the file", _square(e.get("square_onnxruntime"))),
        ],
        "variants": [
            (
                name,
                _variant(v),
                _share(v.get("clean_accuracy")),
                _share(v.get("robust_accuracy")),
                str(v.get("reason") or ""),
            )
            for name, v in e.get("variants", {}).items()
        ],
    }


def _flips(evidence: Evidence) -> str:
    count = evidence.exported["parity"]["label_flips"]
    return f"{count}, {evidence.label_flips} of them beyond rounding" if count else "none"


def _square(value: dict[str, Any] | None) -> str:
    """Run only on images that stood every attack in PyTorch, so the share of those is no robust accuracy."""
    if value and "broken" in value:
        return f"breaks {value['broken']} of {value['n']:,} that stood, in {value['queries']:,} queries each"
    return _withstand(value)


def _variant(v: dict[str, Any]) -> str:
    return f"{v['bytes'] / 1e6:.2f} MB" if v.get("written") and v.get("bytes") else "not written"


def _withstand(value: dict[str, Any] | None) -> str:
    if not value or value.get("robust_accuracy") is None:
        return ""
    return f"{percent(value['robust_accuracy'])} withstand (n = {value['n']:,})"


# --- checks, provenance, cost -----------------------------------------------------------------------------------------


def checks(evidence: Evidence) -> dict[str, Any]:
    found = sixteen(evidence.robustness["checks"])
    rows = [{**c.as_record(), "name": c.title, "kind": KINDS[c.verdict]} for c in found]
    return {"count": "Sixteen" if len(found) == len(NAMES) else f"{len(found)} of sixteen", "rows": rows}


UNCOMMITTED = {"yes": ", with changes not committed", "unknown": ", and git did not say whether all is committed"}


def provenance(evidence: Evidence, source: dict[str, str]) -> dict[str, Any]:
    r, lock = evidence.robustness, evidence.path("dvc.lock")
    changed = UNCOMMITTED.get(source.get("git_dirty", ""), "")
    changed += ", with params.yaml as in dvc.lock" if source.get("git_params") else ""
    revision = source.get("git_revision")
    facts = [
        ("Code (git)", f"{revision}{changed}" if revision else "not in a git repository"),
        ("Data version (DVC)", source.get("data_version", "")),
        ("dvc.lock", f"sha256 {file_sha256(lock)}" if lock.is_file() else ""),
        ("Weights", f"sha256 {r['weights_sha256']}"),
        ("ONNX file", f"sha256 {evidence.manifest[ONNX]}"),
        ("Evidence", f"sha256 {evidence.key}"),
        ("Attacked on", f"{r['device']}, {r['dtype']}"),
        ("Versions", ", ".join(f"{name} {v}" for name, v in sorted(r["versions"].items()))),
    ]
    return {"facts": facts, "files": list(evidence.manifest.items()), "again": _again(source)}


def _again(source: dict[str, str]) -> str:
    if not source.get("git_revision"):
        return "No revision of the code is known, so nobody can make these files again from it."
    if source.get("git_dirty") != "no":
        return "The code was not quite that of this revision: dvc repro may give other files."
    return "With this revision and this dvc.lock, dvc repro gives back the same files on such a machine."


def cost(evidence: Evidence) -> dict[str, Any]:
    records = {p.stem: read_json(p) for p in evidence.path("reports/timing").glob("*.json")}
    found = {stage: record for stage, record in records.items() if _of_what_lies_there(record, evidence)}
    known = [(stage, found[stage]) for stage in STAGES if stage in found]
    rows = [
        (stage, duration(t["seconds"]), f"{t['peak_memory_mb']:,} MB", speed(t), str(t.get("machine", "")))
        for stage, t in known
    ]
    gpu_hours = sum(float(t.get("gpu_hours") or 0) for _, t in known)
    total = duration(sum(t["seconds"] for _, t in known))
    gpus = f"{gpu_hours:.2f} GPU hours of it" if gpu_hours else "no GPU used"
    spent = f"{total} of work, {gpus}; the start of Python and its imports come on top, some seconds for each stage."
    if cached := [stage for stage in STAGES if stage in records and stage not in found]:
        spent += (
            f" Not counted: {', '.join(cached)}, whose outputs came from DVC's cache and had been made by another run."
        )
    return {"rows": rows, "total": spent}


def _of_what_lies_there(timing: dict[str, Any], evidence: Evidence) -> bool:
    """The last run of a stage may have been with other params, and its outputs since been exchanged for cached ones."""
    made = {evidence.path(name): digest for name, digest in timing.get("made", {}).items()}
    return all(file_sha256(path) == digest for path, digest in made.items() if path.is_file())


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def speed(t: dict[str, Any]) -> str:
    """Every "..._per_second" that the stage recorded."""
    found = {k: v for k, v in t.items() if k.endswith("_per_second") and isinstance(v, int | float)}
    return ", ".join(f"{v:,.0f} {k.removesuffix('_per_second').replace('_', ' ')}/s" for k, v in found.items())
