"""The robustness card: one HTML file with all that is known about a model, for people who must decide about it.

    python -m stages.card [FOLDER]        # reports/card.html from the files of a run, without a registry

No script and no request to anywhere. Words are in card.html, looks in card.css; charts are drawn from the CSV files, so
that the page and the evidence cannot differ.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from autolora.files import file_sha256, read_json, write_text
from autolora.statistics import wilson
from stages.charts import STYLE, Series, interval, lines, pairs, percent, plain, swatch
from stages.evidence import ALPHA_CURVE, EPS_CURVE, GALLERY, ONNX, TRAINING, Evidence
from stages.examples import Example, data_uri

TEMPLATE = Path(__file__).with_suffix(".html")
CSS = Path(__file__).with_suffix(".css")
FEW_CLASSES, SHOWN_CLASSES = 14, 30
STAGES = ["prepare", "validate", "finetune", "merge", "evaluate", "export", "register"]
KINDS = {"pass": "pass", "warn": "warn", "fail": "fail", "not run": "none"}
SECTIONS = {
    "model": "Model",
    "threat": "Threat",
    "attacks": "Attacks",
    "classes": "Classes",
    "radius": "Radius",
    "dial": "Dial",
    "training": "Training",
    "examples": "Examples",
    "data": "Data",
    "parity": "Parity",
    "checks": "Checks",
    "lineage": "Lineage",
    "cost": "Cost",
}


def card(
    evidence: Evidence,
    name: str,
    examples: Sequence[Example],
    lineage: dict[str, str],
    gates: dict[str, Any],
    charts: dict[str, str],
) -> str:
    """The whole page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    spent = cost(evidence)
    return template.render(
        **head(evidence),
        name=name,
        style=Markup(CSS.read_text(encoding="utf-8") + STYLE),
        swatch=lambda style: Markup(swatch(style)),
        charts={key: Markup(svg) for key, svg in charts.items()},
        sections=[(a, label) for a, label in SECTIONS.items() if a != "cost" or spent["rows"]],
        badges=badges(evidence),
        model=model(evidence, gates),
        threat=threat(evidence),
        attacks=attacks(evidence),
        twin=twin(evidence),
        classes=classes(evidence),
        eps=over_eps(evidence),
        dial=dial(evidence),
        training=training(evidence, charts),
        examples=[asdict(e) for e in examples],
        picture=data_uri(evidence.path(GALLERY).read_bytes(), "image/png"),
        data=data(evidence),
        parity=parity(evidence),
        checks=checks(evidence),
        lineage=origin(evidence, lineage),
        cost=spent,
        key=evidence.key[:16],
    )


# --- head ------------------------------------------------------------------------------------------------------------


def head(evidence: Evidence) -> dict[str, Any]:
    r = evidence.robustness
    return {
        "n": f"{r['data']['n']:,}",
        "clean": percent(r["clean_accuracy"]),
        "robust": percent(r["robust_accuracy"]),
        "attack": attack_name(r),
        "version": r["version"],
        "radius": radius(r),
        "seed": r["seed"],
        "deviation": r.get("deviation"),
        "warnings": r["warnings"],
        "figures": figures(r),
    }


def attack_name(r: dict[str, Any]) -> str:
    return f"AutoAttack ({r['version']})" if r["version"] != "fast" else "AutoAttack's fast tier"


def radius(r: dict[str, Any]) -> str:
    norm = {"linf": "L∞", "l2": "L2", "l1": "L1"}[r["threat"]["norm"]]
    return f"{norm} {r['threat']['text'].split(':')[-1]}"


def figures(r: dict[str, Any]) -> list[dict[str, Any]]:
    n = r["data"]["n"]
    clean = wilson(round(r["clean_accuracy"] * n), n)
    found = [
        figure("Robust accuracy", "robust", r["robust_accuracy"], r["ci95"]),
        figure("Clean accuracy", "clean", r["clean_accuracy"], clean),
    ]
    if natural := r.get("baseline"):
        found.append(figure("Natural twin, attacked", "natural", natural["robust_accuracy"], natural["ci95"]))
    return found


def figure(name: str, style: str, share: float, bounds: Sequence[float]) -> dict[str, Any]:
    value, low, high = (f"{100 * v:.1f}" for v in (share, *bounds))
    words = f"{name}: {value} percent, 95 percent interval {low} to {high}"
    chart = Markup(interval(share, bounds[0], bounds[1], style, words))
    return {"name": name, "style": style, "value": value, "low": low, "high": high, "chart": chart}


def badges(evidence: Evidence) -> list[tuple[str, str]]:
    """What a reader in a hurry must know, in words and not by colour alone."""
    r, width = evidence.robustness, 100 * (evidence.robustness["ci95"][1] - evidence.robustness["ci95"][0])
    standard = r["version"] in ("standard", "plus")
    found = [("pass", attack_name(r)) if standard else ("warn", f"{attack_name(r)}: not the standard attack")]
    found += [_checks_badge(r["checks"])]
    flips = label_flips(evidence)
    found += [("fail", f"ONNX: {flips} labels flip") if flips else ("pass", "ONNX answers as the attacked network")]
    found += [(data_kind(evidence), f"data: {evidence.quality['verdict']}")]
    if width > 10:
        found.append(("warn", f"few images: the interval is {width:.0f} points wide"))
    return found


def _checks_badge(found: list[dict[str, Any]]) -> tuple[str, str]:
    count = {verdict: sum(c["verdict"] == verdict for c in found) for verdict in KINDS}
    rest = "".join(f", {count[v]} {v}" for v in ("warn", "fail", "not run") if count[v])
    worst = "fail" if count["fail"] else "warn" if rest else "pass"
    return worst, f"{count['pass']} of {len(found)} checks pass{rest}"


def label_flips(evidence: Evidence) -> int:
    """Labels on which the file and the attacked network differ, where that is no matter of rounding."""
    p = evidence.exported["parity"]
    return int(p.get("label_flips_beyond_noise", p["label_flips"]))


# --- sections --------------------------------------------------------------------------------------------------------


def model(evidence: Evidence, gates: dict[str, Any]) -> list[tuple[str, str]]:
    r, tuned = evidence.robustness, evidence.optional("models/finetuned/finetuned.json")
    size, names = evidence.image_size, evidence.classes
    pixels = "bytes from 0 to 255" if evidence.exported.get("input") == "uint8" else "floats from 0 to 1"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return [
        ("What it is", "an image classifier, tuned adversarially from a pre-trained backbone (AutoLoRa, ICLR 2024)"),
        ("Reads", f"{size} × {size} pixels in colour, {pixels}; it normalises them itself" if size else ""),
        ("Answers", f"{len(names)} logits: {', '.join(names[:12])}{more}"),
        ("Method", f"{tuned['method']}, after the {tuned['reference']}" if tuned else ""),
        ("Dial", f"alpha = {plain(r['alpha'])}"),
        ("File", f"model.onnx, {evidence.exported['bytes'] / 1e6:.2f} MB, opset {evidence.exported['opset']}"),
        ("To be promoted", f"{_gates(gates)}; no failed check"),
    ]


def _gates(gates: dict[str, Any]) -> str:
    return f"at least {percent(gates['clean'])} clean and {percent(gates['robust'])} robust, {gates['attack']} attack"


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


def classes(evidence: Evidence) -> dict[str, Any]:
    found = evidence.robustness["by_class"]
    low, high = (choose(found, key=lambda c: c["robust"]) for choose in (min, max))
    counts = sorted({c["n"] for c in found})
    return {
        "few": len(found) <= FEW_CLASSES,
        "hidden": len(found) > SHOWN_CLASSES,
        "low": (low["class"], percent(low["robust"])),
        "high": (high["class"], percent(high["robust"])),
        "images": f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "rows": [(str(c["class"]), c["n"], percent(c["clean"]), percent(c["robust"])) for c in found],
    }


def over_eps(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.rows(EPS_CURVE)
    names = {"robust": "this model", "natural": "natural twin"}
    return {
        "attack": ", ".join(sorted({r["attack"] for r in rows if r["attack"] != "none"})),
        "beyond": _beyond(evidence),
        "legend": [(key, text) for key, text in names.items() if any(r["model"] == key for r in rows)],
        "rows": [
            (names.get(r["model"], r["model"]), _number(r["eps"]), _percent(r["accuracy"]), r["attack"]) for r in rows
        ],
    }


def _beyond(evidence: Evidence) -> str:
    """The points that the chart leaves out, so that its interesting part is wide."""
    limit, scale = _shown_radius(evidence), _radius_scale(evidence)[0]
    rows = [r for r in evidence.rows(EPS_CURVE) if r["model"] == "robust" and float(r["eps"]) > limit]
    return ", ".join(f"{_percent(r['accuracy'])} at {float(r['eps']) * scale:.3g}" for r in rows)


def _shown_radius(evidence: Evidence) -> float:
    return 3.5 * evidence.robustness["threat"]["eps"]


def _radius_scale(evidence: Evidence) -> tuple[float, str]:
    norm = evidence.robustness["threat"]["norm"]
    return (255.0, "radius, in grey levels of 255") if norm == "linf" else (1.0, f"radius, {norm}")


def dial(evidence: Evidence) -> dict[str, Any]:
    rows = evidence.rows(ALPHA_CURVE)
    words = {"branch": "the natural branch", "natural": "the naturally tuned twin"}
    table = [
        (r["toward"], r["alpha"], _percent(r["clean"]), _percent(r["robust"]), "chosen" if _true(r["chosen"]) else "")
        for r in rows
    ]
    return {
        "toward": words.get(_direction(rows), _direction(rows)),
        "chosen": plain(evidence.robustness["alpha"]),
        "n": rows[0]["n"],
        "rows": table,
    }


def _direction(rows: list[dict[str, str]]) -> str:
    """The curve that the choice was made on; the file may hold others for comparison."""
    return next((r["toward"] for r in rows if _true(r["chosen"])), rows[0]["toward"])


def training(evidence: Evidence, charts: dict[str, str]) -> dict[str, Any]:
    rows = evidence.rows(TRAINING)
    halved = _epochs(rows, "halved")
    note = (
        f"Halved after epoch {', '.join(halved)}; the best weights so far were put back." if halved else "Never halved."
    )
    shown = [
        ("validation_accuracy", "Validation accuracy", [("clean", "clean"), ("robust", "robust (PGD)")], ""),
        ("learning_rate", "Learning rate", [], note),
        ("lambdas", "Loss weights", [("clean", "lambda 1, natural"), ("robust", "lambda 2, distillation")],
         "Both follow the accuracy of the natural branch on the training set."),
        ("gradient_cosine", "Gradient cosine", [], _cosine_note(rows)),
    ]  # fmt: skip
    return {
        "epochs": len(rows),
        "charts": [
            {"title": title, "legend": legend, "note": note, "svg": Markup(charts[key])}
            for key, title, legend, note in shown
            if key in charts
        ],
        "head": [column.replace("_", " ") for column in rows[0]],
        "rows": [[_number(value) for value in r.values()] for r in rows],
    }


def _cosine_note(rows: list[dict[str, str]]) -> str:
    """The diagnosis: do the natural and the adversarial loss want the same of the weights?"""
    series = _column(rows, "gradient_cosine", "accent", "cosine")
    middle = statistics.median(series.y) if series else 0.0
    verdict = "they pull apart" if middle < 0.2 else "they agree in part" if middle < 0.6 else "they mostly agree"
    return (
        f"Between the gradients of the natural and the adversarial loss: median {middle:.2f}, {verdict}. Near 0 or "
        "below, clean accuracy is won against robustness, which is why the low-rank branch takes the natural gradient."
    )


def data(evidence: Evidence) -> dict[str, Any]:
    q, d = evidence.quality, evidence.robustness["data"]
    found = q["checks"]
    drawn = "drawn evenly from the classes" if d["stratified"] else "not drawn by class"
    counts = {k: f"{v:,}" for k, v in q["images"].items()}
    parts = ", ".join(f"{counts[k]} {k}" for k in ("train", "val", "test") if k in counts)
    return {
        "kind": data_kind(evidence),
        "verdict": q["verdict"],
        "summary": f"{sum(c['passed'] for c in found.values())} of {len(found)} expectations hold.",
        "facts": [
            ("Data set", str(d["name"])),
            ("Images", f"{counts['used']} of {counts['found']} used: {parts}"),
            ("Attacked", f"{d['n']:,} of the {d['split']} part, {drawn}"),
            ("Their ids", f"sha256 {d['ids_sha256']}"),
        ],
        "remarks": [*q["critical"], *q["warnings"]],
        "checks": [{"name": name, **_data_check(c)} for name, c in found.items()],
    }


def data_kind(evidence: Evidence) -> str:
    return "fail" if evidence.quality["critical"] else "warn" if evidence.quality["warnings"] else "pass"


def _data_check(c: dict[str, Any]) -> dict[str, Any]:
    kind = "pass" if c["passed"] else "fail" if c["severity"] == "critical" else "warn"
    return {"kind": kind, "verdict": "holds" if c["passed"] else c["severity"], "failed": f"{c['failed']} of {c['of']}"}


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
    return f"{count}, {label_flips(evidence)} of them beyond rounding" if count else "none"


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


def checks(evidence: Evidence) -> dict[str, Any]:
    found = sorted(evidence.robustness["checks"], key=lambda c: c["number"])
    count = len({c["number"] for c in found})
    rows = [{**c, "kind": KINDS[c["verdict"]]} for c in found]
    return {"count": "Sixteen" if count == 16 else f"{count} of sixteen", "rows": rows}


def origin(evidence: Evidence, lineage: dict[str, str]) -> dict[str, Any]:
    r, lock = evidence.robustness, evidence.path("dvc.lock")
    changed = ", with changes not committed" if lineage.get("git_dirty") == "yes" else ""
    revision = lineage.get("git_revision")
    facts = [
        ("Code (git)", f"{revision}{changed}" if revision else "not in a git repository"),
        ("Data version (DVC)", lineage.get("data_version", "")),
        ("dvc.lock", f"sha256 {file_sha256(lock)}" if lock.is_file() else ""),
        ("Weights", f"sha256 {r['weights_sha256']}"),
        ("ONNX file", f"sha256 {evidence.manifest[ONNX]}"),
        ("Evidence", f"sha256 {evidence.key}"),
        ("Attacked on", f"{r['device']}, {r['dtype']}"),
        ("Versions", ", ".join(f"{name} {v}" for name, v in sorted(r["versions"].items()))),
    ]
    return {"facts": facts, "files": list(evidence.manifest.items())}


def cost(evidence: Evidence) -> dict[str, Any]:
    found = {p.stem: read_json(p) for p in evidence.path("reports/timing").glob("*.json")}
    known = [(stage, found[stage]) for stage in STAGES if stage in found]
    rows = [
        (stage, duration(t["seconds"]), f"{t['peak_memory_mb']:,} MB", speed(t), str(t.get("machine", "")))
        for stage, t in known
    ]
    gpu_hours = sum(float(t.get("gpu_hours") or 0) for _, t in known)
    total = duration(sum(t["seconds"] for _, t in known))
    spent = f"{total} in all, {gpu_hours:.2f} GPU hours of it." if gpu_hours else f"{total} in all, no GPU used."
    return {"rows": rows, "total": spent}


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def speed(t: dict[str, Any]) -> str:
    """Every "..._per_second" that the stage recorded."""
    found = {k: v for k, v in t.items() if k.endswith("_per_second") and isinstance(v, int | float)}
    return ", ".join(f"{v:,.0f} {k.removesuffix('_per_second').replace('_', ' ')}/s" for k, v in found.items())


# --- charts ----------------------------------------------------------------------------------------------------------


def plots(evidence: Evidence) -> dict[str, str]:
    """Every chart by name: drawn once, shown on the card and kept beside the run."""
    rows = evidence.rows(TRAINING)
    found = {
        "by_class": class_chart(evidence),
        "accuracy_over_eps": eps_chart(evidence),
        "alpha_curve": alpha_chart(evidence),
        "validation_accuracy": accuracy_chart(rows),
        "learning_rate": rate_chart(rows),
        "lambdas": lambda_chart(rows),
        "gradient_cosine": cosine_chart(rows),
    }
    return {name: svg for name, svg in found.items() if svg}


def class_chart(evidence: Evidence) -> str:
    found = evidence.robustness["by_class"]
    shown = found if len(found) <= SHOWN_CLASSES else sorted(found, key=lambda c: c["robust"])[:SHOWN_CLASSES]
    words = "; ".join(f"{c['class']}: {percent(c['robust'])} robust, {percent(c['clean'])} clean" for c in shown)
    return pairs("Accuracy by class", words, [(str(c["class"]), c["robust"], c["clean"]) for c in shown])


def eps_chart(evidence: Evidence) -> str:
    t = evidence.robustness["threat"]
    (scale, label), limit = _radius_scale(evidence), _shown_radius(evidence)
    series = []
    for key, text in (("robust", "this model"), ("natural", "natural twin")):
        rows = [r for r in evidence.rows(EPS_CURVE) if r["model"] == key and float(r["eps"]) <= limit]
        points = sorted((float(r["eps"]) * scale, float(r["accuracy"])) for r in rows)
        series += [Series(text, key, [x for x, _ in points], [y for _, y in points])] if points else []
    words = "; ".join(
        f"{s.label}: {percent(s.y[0])} at {s.x[0]:.3g}, {percent(s.y[-1])} at {s.x[-1]:.3g}" for s in series
    )
    return lines("Accuracy over the radius", words, series, label, marks=[(t["eps"] * scale, "threat model")])


def alpha_chart(evidence: Evidence) -> str:
    every = evidence.rows(ALPHA_CURVE)
    rows = sorted((r for r in every if r["toward"] == _direction(every)), key=lambda r: float(r["alpha"]))
    series = [_column(rows, key, key, key, x="alpha") for key in ("clean", "robust")]
    chosen = evidence.robustness["alpha"]
    words = f"Clean and robust accuracy on the validation part over alpha; {plain(chosen)} was chosen."
    drawn = [s for s in series if s]
    floor = max(0.0, math.floor(10 * min(y for s in drawn for y in s.y) - 0.5) / 10)
    return lines("The dial", words, drawn, "alpha", marks=[(chosen, "chosen")], y_range=(floor, 1.0))


def accuracy_chart(rows: list[dict[str, str]]) -> str:
    series = [_column(rows, "val_clean", "clean", "clean"), _column(rows, "val_robust", "robust", "robust")]
    best = [(float(epoch), "best") for epoch in _epochs(rows, "best")[-1:]]
    words = "Clean and robust accuracy on the validation part after each epoch."
    return _over_epochs("Validation accuracy", words, series, marks=best)


def rate_chart(rows: list[dict[str, str]]) -> str:
    halved = _epochs(rows, "halved")
    words = f"Learning rate in each epoch, halved after epochs {', '.join(halved) or 'none'}."
    marks = [(float(epoch), "") for epoch in halved]
    series = [_column(rows, "lr", "accent", "learning rate")]
    return _over_epochs("Learning rate", words, series, marks=marks, y_range=None, y_text=_rate, log=True, steps=True)


def lambda_chart(rows: list[dict[str, str]]) -> str:
    series = [_column(rows, "lambda1", "clean", "lambda 1"), _column(rows, "lambda2", "robust", "lambda 2")]
    words = "Lambda 1 weighs the natural loss, lambda 2 the distillation."
    return _over_epochs("Loss weights", words, series, y_range=None, y_text=plain)


def cosine_chart(rows: list[dict[str, str]]) -> str:
    series = _column(rows, "gradient_cosine", "accent", "cosine")
    if series is None:
        return ""
    words = f"Median {statistics.median(series.y):.2f}, from {min(series.y):.2f} to {max(series.y):.2f}."
    return _over_epochs("Gradient cosine", words, [series], y_range=(min(-0.2, *series.y), 1.0), y_text=plain)


def _rate(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")


def _over_epochs(title: str, words: str, series: Sequence[Series | None], **options: Any) -> str:
    drawn = [s for s in series if s]
    return lines(title, words, drawn, "epoch", dots=False, **options) if drawn else ""


def _column(rows: list[dict[str, str]], name: str, style: str, label: str, x: str = "epoch") -> Series | None:
    """A column of a CSV file as a series, without the rows where it is empty."""
    points = [(float(r[x]), float(r[name])) for r in rows if r.get(name, "") not in ("", "nan")]
    return Series(label, style, [a for a, _ in points], [b for _, b in points]) if points else None


def _epochs(rows: list[dict[str, str]], event: str) -> list[str]:
    return [r["epoch"] for r in rows if event in r["event"].split("+")]


# --- figures as text -------------------------------------------------------------------------------------------------


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _percent(text: str) -> str:
    return percent(float(text))


def _number(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _true(text: str) -> bool:
    return text.strip().lower() in ("1", "1.0", "true")


def write_card(folder: str | Path = ".") -> None:
    """The card of the files in a folder."""
    from stages.examples import gallery
    from stages.mirror import lineage
    from stages.params import check

    evidence = Evidence(folder)
    register = check(evidence.path("params.yaml")).register
    examples = gallery(evidence, evidence.classes)
    page = card(
        evidence, register.name, examples, lineage(evidence.folder), register.gates.model_dump(), plots(evidence)
    )
    write_text(evidence.path("reports/card.html"), page)


if __name__ == "__main__":
    write_card(*sys.argv[1:])
