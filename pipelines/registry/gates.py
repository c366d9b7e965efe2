"""May an alias move to this version? Gates on its own evidence, and a paired test against the present champion.

Nothing here talks to a server: evidence in, findings out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from autolora.attacks.also_flags import accuracy_of, columns_of
from autolora.attacks.verdicts import NAMES, NOT_RUN
from autolora.common.statistics import mcnemar, wilson
from autolora.data.sample import ids_sha256
from autolora.threat import Threat
from stages.common.params import Gates
from stages.evidence.checks import sixteen
from stages.evidence.files import Evidence


@dataclass(frozen=True)
class Finding:
    what: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'refuse'}  {self.what}: {self.detail}"


@dataclass(frozen=True)
class Paired:
    """Two models on the same images: what only one of them gets right, and how surely that is no accident."""

    only_new: int
    only_old: int
    p: float

    def __str__(self) -> str:
        return f"right only now {self.only_new}, right only before {self.only_old}, McNemar exact p = {self.p:.3g}"


def gate_findings(evidence: Evidence, gates: Gates) -> list[Finding]:
    r, flips = evidence.robustness, evidence.label_flips
    measured = Measured.of(evidence.flags)
    checks = sixteen(r["checks"])
    failed = [c.name for c in checks if c.verdict == "fail"]
    made = [c for c in checks if (c.verdict, c.detail) != ("not run", NOT_RUN)]  # others say why they cannot be
    threat, asked = Threat.from_record(r["threat"]), gates.threat and Threat.parse(gates.threat)
    enough = not asked or (threat.norm == asked.norm and threat.eps >= asked.eps)
    counts = {"standard": ("standard", "plus", "strong")}.get(gates.attack, (gates.attack,))
    critical = evidence.quality["critical"]
    return [
        *contradictions(r, measured),
        *also_findings(r, evidence.flags, gates.also),
        _threshold("clean_accuracy", measured.clean, gates.clean),
        _threshold("robust_accuracy", measured.robust, gates.robust),
        _threshold("lower_end_of_the_interval", measured.interval[0], gates.lower),
        Finding("images", measured.n >= gates.images, f"{measured.n} attacked, {gates.images} are asked for"),
        Finding("threat", enough, f"{threat}, {f'at least {asked}' if asked else 'none in particular'} is asked for"),
        Finding("attack", r["version"] in counts, f"AutoAttack {r['version']}, {gates.attack} is asked for"),
        Finding("checks", len(made) == len(NAMES) and not failed, _in_short(len(made), failed)),
        Finding("parity", flips <= gates.label_flips, f"{flips} labels flip in ONNX, {gates.label_flips} may"),
        Finding("data", not critical, "; ".join(critical) or evidence.quality["verdict"]),
    ]


def also_findings(report: dict[str, Any], flags: np.ndarray, least: dict[str, float]) -> list[Finding]:
    """Other threats and corruptions: computed anew from the flags, and the gates on them."""
    rows = {row["what"]: row for row in report.get("also", [])}
    lost = [what for what in rows if not columns_of(rows[what]) <= set(flags.dtype.names or ())]
    if lost:
        return [
            Finding(f"evidence, {what}", False, "the report has it, the flags of its images do not") for what in lost
        ]
    found = {what: accuracy_of(row, flags) for what, row in rows.items()}
    said = {f"accuracy, {what}": (row["accuracy"], found[what]) for what, row in rows.items()}
    unknown = "not measured: evaluate.also of its params.yaml did not ask for it"
    return [
        *_contradicted(said),
        *(_threshold(what, found[what], least[what]) for what in least if what in found),
        *(Finding(what, False, unknown) for what in least if what not in found),
    ]


def _in_short(count: int, failed: list[str]) -> str:
    if count != len(NAMES):
        return f"{count} of {len(NAMES)} are on record: what was not checked did not pass"
    return f"failed: {', '.join(failed)}" if failed else "none failed"


@dataclass(frozen=True)
class Measured:
    """What the flags of each image come to, whatever the report says."""

    n: int
    clean: float
    robust: float
    interval: tuple[float, float]
    ids_sha256: str

    @classmethod
    def of(cls, flags: np.ndarray) -> Measured:
        n, robust = len(flags), int(flags["robust"].sum())
        ids = ids_sha256([one.decode() for one in flags["id"].tolist()])
        low, high = wilson(robust, n)
        return cls(n, float(flags["clean"].mean()), robust / n, (low, high), ids)


def contradictions(report: dict[str, Any], measured: Measured) -> list[Finding]:
    """The figures of the report that its own flags do not bear out; empty where they agree."""
    said = {
        "clean accuracy": (report["clean_accuracy"], measured.clean),
        "robust accuracy": (report["robust_accuracy"], measured.robust),
        "interval": (tuple(report["ci95"]), measured.interval),
        "number of images": (report["data"]["n"], measured.n),
        "images": (report["data"]["ids_sha256"], measured.ids_sha256),
    }
    return _contradicted(said)


def _contradicted(said: dict[str, tuple[Any, Any]]) -> list[Finding]:
    return [
        Finding(f"evidence, {what}", False, f"the report says {mine}, the flags of its images say {theirs}")
        for what, (mine, theirs) in said.items()
        if not _agree(mine, theirs)
    ]


def _agree(said: Any, found: Any) -> bool:
    """Figures that are worked out again differ in their last digits."""
    if isinstance(found, tuple):
        return len(said) == len(found) and all(map(_agree, said, found))
    return abs(said - found) < 2e-6 if isinstance(found, float) else said == found


def _threshold(metric: str, value: float, threshold: float) -> Finding:
    asked = f"{value:.4f}, at least {threshold:.4f} is asked for"
    return Finding(metric.replace("_", " "), value >= threshold, asked)


def champion_findings(new: Evidence, old: Evidence, gates: Gates) -> tuple[list[Finding], dict[str, Paired]]:
    """Better in robust accuracy beyond chance, not worse in clean accuracy beyond chance, on the same images only."""
    if refused := comparable(new, old):
        return refused, {}
    tests = {key: paired(new.flags, old.flags, key) for key in ("robust", "clean")}
    robust, clean = tests["robust"], tests["clean"]
    better = robust.only_new > robust.only_old and robust.p < gates.significance
    worse = clean.only_old > clean.only_new and clean.p < gates.significance
    verdict = f"{'better' if better else 'not shown to be better'} on {len(new.flags)} images"
    beyond = f"beyond chance is p < {gates.significance:g}"
    return [
        Finding("robust, against the champion", better, f"{verdict}: {robust} ({beyond})"),
        Finding("clean, against the champion", not worse, f"{'worse' if worse else 'not shown to be worse'}: {clean}"),
    ], tests


def comparable(new: Evidence, old: Evidence) -> list[Finding]:
    """Why the two cannot be compared at all; empty where they can."""
    a, b = new.robustness, old.robustness
    pairs = {
        "threat model": (Threat.from_record(a["threat"]), Threat.from_record(b["threat"])),
        "attack": (a["version"], b["version"]),
        "test set": (a["data"]["ids_sha256"][:12], b["data"]["ids_sha256"][:12]),
    }
    found = [
        Finding(what, False, f"{mine} here, {theirs} of the champion: not comparable, whatever the figures say")
        for what, (mine, theirs) in pairs.items()
        if mine != theirs
    ]
    if not found and set(new.flags["id"]) != set(old.flags["id"]):
        found.append(Finding("test set", False, "the per-image flags are of other images: not comparable"))
    return found or _other_questions(new, old)


def _other_questions(new: Evidence, old: Evidence) -> list[Finding]:
    """The same images may have other labels, and the answers other names: then the flags answer another question."""
    relabelled = int((_by_id(new.flags)["label"] != _by_id(old.flags)["label"]).sum())
    found = [("classes", _first_difference(new.classes, old.classes))]
    found += [("labels", f"{relabelled} of {len(new.flags)} images have another label" if relabelled else "")]
    mine, theirs = (evidence.exported.get("input", "float32") for evidence in (new, old))
    found += [("input", f"{mine} pixels here, {theirs} of the champion" if mine != theirs else "")]
    return [Finding(what, False, f"{said}: not comparable, whatever the figures say") for what, said in found if said]


def _first_difference(mine: list[str], theirs: list[str]) -> str:
    if len(mine) != len(theirs):
        return f"{len(mine)} here, {len(theirs)} of the champion"
    differing = (
        f"class {i} is {a!r} here, {b!r} of the champion" for i, (a, b) in enumerate(zip(mine, theirs)) if a != b
    )
    return next(differing, "")


def paired(new: np.ndarray, old: np.ndarray, key: str) -> Paired:
    """McNemar on the flags of the same images, matched by their id."""
    mine, theirs = _by_id(new)[key], _by_id(old)[key]
    only_new, only_old = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    return Paired(only_new, only_old, mcnemar(only_new, only_old))


def _by_id(flags: np.ndarray) -> np.ndarray:
    return flags[np.argsort(flags["id"], kind="stable")]


def as_record(findings: list[Finding], tests: dict[str, Paired]) -> dict[str, Any]:
    """Both as plain values, for the log."""
    return {
        "findings": [{"what": f.what, "passed": f.passed, "detail": f.detail} for f in findings],
        "tests": {k: {"only_new": t.only_new, "only_old": t.only_old, "p": t.p} for k, t in tests.items()},
    }
