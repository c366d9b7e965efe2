"""Fold theta + alpha * BA once, alpha chosen on the validation part: what comes out is attacked, exported and shipped.

    dvc repro merge        ->  models/merged.safetensors, reports/alpha_curve.csv

The curve shows the directions toward the branch and the natural twin whichever is chosen, so that a user sees the trade
and can set `merge.alpha` and `merge.toward` by hand without training again. `merge.soup` mixes the members first.
"""

from __future__ import annotations

import csv
import io
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor

from autolora.backbones.classifier import Classifier, load_classifier, read_notes, save_classifier
from autolora.common.files import weights_sha256, write_text
from autolora.common.progress import bar
from autolora.threat import Threat
from autolora.training.branch import add_branch, load_deltas
from autolora.training.dial import Point, choose, interpolate
from stages.common.command_line import takes_no_arguments
from stages.common.recipes import in_one_line, set_otherwise
from stages.common.runner import StageError, main, only_one, timed
from stages.common.views import MergeParams, load
from stages.estimate import announce
from stages.estimate.costs import Counts
from stages.merging.layer import tuned_layer
from stages.merging.soups import cooked
from stages.merging.validation import FINETUNED, Validation

ROBUST = FINETUNED / "robust.safetensors"
MERGED, CURVE = Path("models/merged.safetensors"), Path("reports/alpha_curve.csv")
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


class Ends(NamedTuple):
    """What the dial turns between."""

    robust: Classifier
    natural: Classifier
    deltas: dict[str, Tensor]  # BA of each layer; empty where the method trains no branch
    critical: Classifier | None  # the robust network with one layer tuned naturally, where it is asked for
    notes: dict[str, str]  # on how they were made; none of the default


class Shipped(NamedTuple):
    network: Classifier
    point: Point  # on the validation part
    why: str
    notes: dict[str, str]


def merge() -> None:
    params = load(MergeParams)
    validation = Validation(params.threat)
    with timed("merge", MERGED) as record, only_one(validation.folder):
        asked, toward = params.merge.alpha, params.merge.toward
        ends = _read_ends(params, validation)
        curve = _curve(ends, _settings(ends, asked, toward), validation, mixed=params.merge.mix == "nuts")
        along = [point for point in curve if point.toward == toward]
        chosen, why = choose(along) if asked == "auto" else (_find(along, float(asked)), "set in params.yaml")
        network = _network(ends, chosen.toward, chosen.alpha)
        print(f"merge: alpha = {chosen.alpha:g} toward {chosen.toward}: {why}")
        shipped = Shipped(network, chosen, why, ends.notes | _otherwise(params))
        if params.merge.mix == "nuts":
            shipped = _mixed(shipped, ends.natural, validation)
        digest = _write(shipped, params.threat)
        _write_curve(curve, chosen)
        record |= {"weights_sha256": digest, "alpha": chosen.alpha, "why": shipped.why, **shipped.notes}


def _otherwise(params: MergeParams) -> dict[str, str]:
    """What params.yaml has in place of the recipe's own."""
    name = params.finetune.recipe
    if name is None or not (values := set_otherwise(name, "merge", params.merge.model_dump())):
        return {}
    print(f"merge: recipe {name}, but {in_one_line(values)}, as params.yaml says", file=sys.stderr)
    return {"recipe_but": in_one_line(values)}


def _read_ends(params: MergeParams, validation: Validation) -> Ends:
    """On the CPU: folding there gives the same bytes whatever the curve is measured on."""
    robust, natural = (load_classifier(FINETUNED / f"{name}.safetensors") for name in ("robust", "natural"))
    deltas, notes = load_deltas(FINETUNED / "branch.safetensors"), dict[str, str]()
    if params.merge.soup != "none":
        robust, deltas, notes = cooked(params.merge.soup, params.finetune.members, validation)
    elif params.finetune.members > 1:
        print(f"merge: merge.soup is none: the first of {params.finetune.members} members ships", file=sys.stderr)
    if params.merge.toward != "critical":
        return Ends(robust, natural, deltas, None, notes)
    tuned, layer = tuned_layer(robust, validation, params.seed, params.finetune.augmentation)
    return Ends(robust, natural, deltas, tuned, notes | {"critical_layer": layer})


def _settings(ends: Ends, asked: str | float, toward: str) -> list[tuple[str, float]]:
    """The points of the curve: the directions on the grid, and the alpha that was asked for."""
    found = {("natural", alpha) for alpha in GRID} | {("branch", alpha) for alpha in GRID if ends.deltas or alpha == 0}
    found |= {(toward, alpha) for alpha in GRID if toward == "critical"}
    if asked != "auto":
        if toward == "branch" and float(asked) != 0 and not ends.deltas:
            raise StageError(
                f"merge.alpha is {asked}, toward the branch, but finetune.method trained none: "
                "set merge.alpha to 0 or auto, or merge.toward to natural"
            )
        found.add((toward, float(asked)))
    return sorted(found)


def _network(ends: Ends, toward: str, alpha: float) -> Classifier:
    if toward == "branch":
        return cast(Classifier, add_branch(ends.robust, ends.deltas, alpha))
    other = ends.natural if ends.critical is None or toward == "natural" else ends.critical
    return cast(Classifier, interpolate(ends.robust, other, alpha))


def _curve(ends: Ends, settings: list[tuple[str, float]], validation: Validation, *, mixed: bool) -> list[Point]:
    points = []
    announce.merge(ends.robust, Counts(0, len(validation)), len(settings), mixed=mixed)
    with bar(len(settings) * len(validation), "the dial", "image") as shown:
        for toward, alpha in settings:
            name = f"{toward}-{alpha:.6f}{_mark(ends, toward)}"
            flags = validation.judged(name, partial(_network, ends, toward, alpha), shown.update)
            points.append(Point(toward, alpha, *flags))
    return points


def _mark(ends: Ends, toward: str) -> str:
    """Of networks that are no file of `finetune`: by their weights."""
    made = ends.critical if toward == "critical" else ends.robust if "soup" in ends.notes else None
    return "" if made is None else f"-{weights_sha256(made.state_dict())[:16]}"


def _mixed(alone: Shipped, natural: Classifier, validation: Validation) -> Shipped:
    """With the natural twin in one network; or alone, where a mixture makes no sense."""
    mixture, why = validation.mixture(alone.network, natural)
    if mixture is None:
        print(f"merge: no mixture, the robust network ships alone: {why}")
        return alone._replace(why=f"{alone.why}; no mixture: {why}")
    print(f"merge: mixed with the natural twin: {why}")
    flags = validation.judged(f"mixture-{weights_sha256(mixture.state_dict())[:16]}", lambda: mixture)
    point = Point(alone.point.toward, alone.point.alpha, *flags)
    return Shipped(mixture.cpu(), point, f"{alone.why}; mixture: {why}", alone.notes | {"mix": "nuts"})


def _find(points: list[Point], alpha: float) -> Point:
    return next(point for point in points if point.alpha == alpha)


def _write(shipped: Shipped, threat: Threat) -> str:
    point, (clean, robust) = shipped.point, shipped.point.accuracies
    notes = {"alpha": f"{point.alpha:g}", "toward": point.toward, "threat": str(threat), "why": shipped.why}
    notes |= shipped.notes
    notes["robust_sha256"] = read_notes(ROBUST)["weights_sha256"]  # what was fine-tuned; stages.evaluate compares
    return save_classifier(shipped.network, MERGED, **notes, val_clean=f"{clean:.6f}", val_robust=f"{robust:.6f}")


def _write_curve(curve: list[Point], chosen: Point) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["toward", "alpha", "clean", "robust", "n", "chosen"])
    for point in curve:
        clean, robust = point.accuracies
        rows.writerow(
            [point.toward, f"{point.alpha:g}", f"{clean:.6f}", f"{robust:.6f}", len(point.clean), int(point is chosen)]
        )
    write_text(CURVE, text.getvalue())


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(merge)
