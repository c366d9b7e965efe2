"""Fold theta + alpha * BA once, alpha chosen on the validation part: what comes out is attacked, exported and shipped.

    dvc repro merge        ->  models/merged.safetensors, reports/alpha_curve.csv

The curve shows both directions of the dial whichever is chosen, so that a user sees the trade and can set
`merge.alpha` and `merge.toward` by hand without training again.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autolora.backbones.classifier import Classifier, load_classifier, read_notes, save_classifier
from autolora.common.code import code_sha256
from autolora.common.files import file_sha256, replacing, write_text
from autolora.common.progress import bar
from autolora.threat import Threat
from autolora.training.branch import add_branch, load_deltas
from autolora.training.dial import Point, choose, interpolate, judge
from stages.common.command_line import takes_no_arguments
from stages.common.runner import StageError, main, only_one, timed, work_dir
from stages.common.views import MergeParams, load
from stages.estimate import announce
from stages.estimate.costs import Counts

FINETUNED, VALIDATION = Path("models/finetuned"), Path("data/prepared/val")
ROBUST = FINETUNED / "robust.safetensors"
MERGED, CURVE = Path("models/merged.safetensors"), Path("reports/alpha_curve.csv")
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


class Ends(NamedTuple):
    """What the dial turns between."""

    robust: Classifier
    natural: Classifier
    deltas: dict[str, Tensor]  # BA of each layer; empty where the method trains no branch


def merge() -> None:
    params = load(MergeParams)
    with timed("merge") as record:
        ends = _read_ends()
        asked, toward = params.merge.alpha, params.merge.toward
        curve = _curve(ends, _settings(ends, asked, toward), params.threat)
        along = [point for point in curve if point.toward == toward]
        chosen, why = choose(along) if asked == "auto" else (_find(along, float(asked)), "set in params.yaml")
        network = _network(ends, chosen.toward, chosen.alpha)
        digest = _write(network, chosen, params.threat, why, read_notes(ROBUST)["weights_sha256"])
        _write_curve(curve, chosen)
        record |= {"weights_sha256": digest, "alpha": chosen.alpha, "why": why}
        print(f"merge: alpha = {chosen.alpha:g} toward {chosen.toward}: {why}")


def _read_ends() -> Ends:
    """On the CPU: folding there gives the same bytes whatever the curve is measured on."""
    robust, natural = (load_classifier(FINETUNED / f"{name}.safetensors") for name in ("robust", "natural"))
    return Ends(robust, natural, load_deltas(FINETUNED / "branch.safetensors"))


def _settings(ends: Ends, asked: str | float, toward: str) -> list[tuple[str, float]]:
    """The points of the curve: both directions on the grid, and the alpha that was asked for."""
    found = {("natural", alpha) for alpha in GRID} | {("branch", alpha) for alpha in GRID if ends.deltas or alpha == 0}
    if asked != "auto":
        if toward == "branch" and float(asked) != 0 and not ends.deltas:
            raise StageError(
                f"merge.alpha is {asked}, toward the branch, but finetune.method trained none: "
                "set merge.alpha to 0 or auto, or merge.toward to natural"
            )
        found.add((toward, float(asked)))
    return sorted(found)


def _network(ends: Ends, toward: str, alpha: float) -> Any:
    if toward == "natural":
        return interpolate(ends.robust, ends.natural, alpha)
    return add_branch(ends.robust, ends.deltas, alpha)


def _curve(ends: Ends, settings: list[tuple[str, float]], threat: Threat) -> list[Point]:
    """Every point measured once, and kept as soon as it is: a crash costs one point."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = (np.load(VALIDATION / f"{name}.npy") for name in ("images", "labels"))
    x, y = torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
    files = [*FINETUNED.glob("*.safetensors"), *VALIDATION.glob("*.npy")]
    sources = {str(f): file_sha256(f) for f in sorted(files)}
    folder = work_dir("merge", files=sources, threat=str(threat), code=code_sha256())
    points = []
    announce.merge(ends.robust, Counts(0, len(y)), len(settings))
    with only_one(folder), bar(len(settings) * len(y), "the dial", "image") as shown:
        for toward, alpha in settings:
            kept = folder / f"{toward}-{alpha:.6f}.npy"
            if kept.exists():
                shown.update(len(y))
            else:
                flags = judge(_network(ends, toward, alpha).to(device), x, y, threat, on_batch=shown.update)
                with replacing(kept) as part, open(part, "wb") as file:
                    np.save(file, np.stack(flags))
            points.append(Point(toward, alpha, *np.load(kept)))
    return points


def _find(points: list[Point], alpha: float) -> Point:
    return next(point for point in points if point.alpha == alpha)


def _write(network: Any, chosen: Point, threat: Threat, why: str, made_of: str) -> str:
    clean, robust = chosen.accuracies
    notes = {"alpha": f"{chosen.alpha:g}", "toward": chosen.toward, "threat": str(threat), "why": why}
    notes["robust_sha256"] = made_of  # what was fine-tuned; stages.evaluate compares
    return save_classifier(network, MERGED, **notes, val_clean=f"{clean:.6f}", val_robust=f"{robust:.6f}")


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
