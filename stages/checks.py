"""All sixteen checks: those that `evaluate` ran, and those that only the whole run's files can answer.

Monotone curves, enough images, no choice on the test part, one set of weights and no leak between splits are read from
the evidence here, unless `evaluate` has already said it. What nobody answered is "not run", and shows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import yaml

from autolora.statistics import wilson
from stages.evidence import EPS_CURVE, EXPORTED, ONNX, ROBUSTNESS, Evidence, onnx_metadata

NAMES = {
    1: "eval mode",
    2: "logits do not depend on the batch",
    3: "pixels in [0,1]",
    4: "unit of eps",
    5: "inside ball and box",
    6: "logits, not probabilities",
    7: "five equal forwards",
    8: "gradients reach the image",
    9: "black box does not beat white box",
    10: "accuracy falls with the radius, to about nothing",
    11: "enough images",
    12: "nothing was chosen on the test part",
    13: "robust means right when clean",
    14: "what was attacked is what ships",
    15: "no image of the test part in training",
    16: "full precision",
}
ABOUT_NOTHING, WIDE = 0.02, 0.1  # accuracy left at the largest radius; width of the interval, as a share


def every_check(evidence: Evidence) -> list[dict[str, Any]]:
    """In order of their numbers; a number may have several."""
    found = list(evidence.robustness["checks"])
    numbers = {c["number"] for c in found}
    for number, name in NAMES.items():
        if number not in numbers:
            verdict, detail = READ.get(number, _not_run)(evidence)
            found.append({"number": number, "name": name, "verdict": verdict, "detail": detail})
    return sorted(found, key=lambda c: c["number"])


def _not_run(_: Evidence) -> tuple[str, str]:
    return "not run", "neither evaluated nor to be read from the files"


def curve_falls(evidence: Evidence) -> tuple[str, str]:
    rows = [r for r in evidence.rows(EPS_CURVE) if r["model"] == "robust"]
    points = sorted((float(r["eps"]), float(r["accuracy"])) for r in rows)
    rises = [eps for (_, before), (eps, after) in pairwise(points) if after > before]
    if rises:
        return "fail", f"it rises at eps {', '.join(f'{eps:.4g}' for eps in rises)}: the attack is too weak there"
    eps, left = points[-1]
    return "pass" if left <= ABOUT_NOTHING else "warn", f"monotone; {100 * left:.1f} % left at eps {eps:.3g}"


def enough_images(evidence: Evidence) -> tuple[str, str]:
    r = evidence.robustness
    low, high = wilson(round(r["robust_accuracy"] * r["data"]["n"]), r["data"]["n"])
    words = f"n = {r['data']['n']}: the 95 % interval is {100 * (high - low):.1f} points wide"
    return "pass" if high - low <= WIDE else "warn", words


def nothing_chosen_on_test(evidence: Evidence) -> tuple[str, str]:
    """dvc.yaml is the proof: what a stage may read is what it declares."""
    path = evidence.path("dvc.yaml")
    if not path.is_file():
        return _not_run(evidence)
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    reads = {name: [str(dep) for dep in stages[name]["deps"]] for name in ("finetune", "merge")}
    bad = [name for name, deps in reads.items() if {"data/prepared", "data/prepared/test"} & set(deps)]
    if bad:
        return "fail", f"{' and '.join(bad)} may read the test part (dvc.yaml)"
    return "pass", "training and the choice of epoch and alpha read the training and validation parts alone"


def one_set_of_weights(evidence: Evidence) -> tuple[str, str]:
    found = {
        ROBUSTNESS: evidence.robustness["weights_sha256"],
        EXPORTED: evidence.exported["weights_sha256"],
        ONNX: onnx_metadata(evidence.path(ONNX)).get("weights_sha256"),
    }
    if len(set(found.values())) > 1:
        return "fail", "evaluated, exported and shipped weights differ"
    return "pass", f"sha256 {evidence.robustness['weights_sha256'][:12]} evaluated, exported, shipped"


def no_leak(evidence: Evidence) -> tuple[str, str]:
    """The data's own checks: identical images across splits fail, near-duplicates warn."""
    checks = evidence.quality["checks"]
    same, near = checks.get("two_splits"), checks.get("near_duplicates")
    if same is None:
        return _not_run(evidence)
    if not same["passed"]:
        return "fail", f"{same['failed']} images are in two parts"
    if near and not near["passed"]:
        return "warn", f"no image is in two parts; {near['failed']} look like one of another part"
    return "pass", "no image is in two parts, and none looks like one of another part"


READ: dict[int, Callable[[Evidence], tuple[str, str]]] = {
    10: curve_falls,
    11: enough_images,
    12: nothing_chosen_on_test,
    14: one_set_of_weights,
    15: no_leak,
}
