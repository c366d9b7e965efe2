"""What `evaluate.also` asks for: the same images under other threats and corruptions. Rows of the record, columns of
the flags.

Each row says: what, accuracy, ci95, and the same of the natural twin (`baseline`). The union is of the images that
stand every threat, the one of params.yaml included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.report import Report
from autolora.common.statistics import wilson
from autolora.corruptions.corrupt import CORRUPTIONS, SEVERITIES, strengths_of
from stages.common import params

KINDS = len(CORRUPTIONS) * len(SEVERITIES)


class Beyond(NamedTuple):
    """Of one network."""

    reports: dict[str, Report]  # by threat, as evaluate.also names it
    corrupted: Tensor | None  # which images are right: bool [n,15,5]

    def columns(self) -> dict[str, np.ndarray]:
        """For each threat which images stand; of each image how many of its corruptions are classified correctly."""
        counts = {} if self.corrupted is None else {params.CORRUPTIONS: self.corrupted.sum((1, 2)).numpy()}
        return {what: report.robust.numpy() for what, report in self.reports.items()} | counts

    def measured(self, main: Report) -> dict[str, np.ndarray]:
        """The same, and after the threats which images stand all of them."""
        found, counts = self.columns(), {}
        if params.CORRUPTIONS in found:
            counts[params.CORRUPTIONS] = found.pop(params.CORRUPTIONS)
        if self.reports:
            stand = torch.stack([main.robust, *(report.robust for report in self.reports.values())])
            found[params.UNION] = stand.all(0).numpy()
        return found | counts


def columns(ours: Beyond, twin: Beyond) -> dict[str, np.ndarray]:
    """Of the flags; the union follows from them."""
    return ours.columns() | {f"baseline_{what}": column for what, column in twin.columns().items()}


def rows(ours: Beyond, twin: Beyond, main: tuple[Report, Report], side: int) -> list[dict[str, Any]]:
    """Of the record; `main` are the reports of the threat in params.yaml."""
    mine, theirs = ours.measured(main[0]), twin.measured(main[1])
    found = []
    for what, flags in mine.items():
        row = {"what": what} | _share(what, flags) | {"baseline": _share(what, theirs[what])}
        if what in ours.reports:
            row |= _of_threat(ours.reports[what])
        elif what == params.UNION:
            row |= {"threats": [str(main[0].threat), *ours.reports]}
        elif ours.corrupted is not None and twin.corrupted is not None:
            row |= {"strengths": strengths_of(side), "kinds": _kinds(ours.corrupted, twin.corrupted)}
        found.append(row)
    return found


def _share(what: str, flags: np.ndarray) -> dict[str, Any]:
    """The interval is of as many images as there are: an image's 75 corruptions are no images of their own."""
    n = len(flags)
    right = flags.sum() / (KINDS if what == params.CORRUPTIONS else 1)
    return {"accuracy": float(right / n), "ci95": list(wilson(float(right), n))}


def _of_threat(report: Report) -> dict[str, Any]:
    known = report.as_record()
    kept = {key: known[key] for key in ("threat", "version", "deviation", "attacks")}
    return kept | {"objections": [check for check in known["checks"] if check["verdict"] == "warn"]}


def _kinds(ours: Tensor, twin: Tensor) -> list[dict[str, Any]]:
    """Of each corruption the mean over severities, each of them, and the twin's mean."""
    mine, theirs = ours.double().mean(0), twin.double().mean(0)
    return [
        {"name": name, "accuracy": a.mean().item(), "by_severity": a.tolist(), "baseline": b.mean().item()}
        for name, a, b in zip(CORRUPTIONS, mine, theirs, strict=True)
    ]
