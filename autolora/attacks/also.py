"""What was found beside the main threat, on the same images: other threats, and corruptions.

Rows of the record and columns of the flags (docs/other-threats.md). The union is of the images that stand every threat,
the main one included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.also_flags import UNION, WORD
from autolora.attacks.report import Report
from autolora.common.statistics import wilson
from autolora.corruptions.corrupt import CORRUPTIONS, SEVERITIES, strengths_of

KINDS = len(CORRUPTIONS) * len(SEVERITIES)


class Also(NamedTuple):
    """Of one network."""

    reports: dict[str, Report]  # by threat
    corrupted: Tensor | None  # which images are right: bool [n,15,5]

    def columns(self) -> dict[str, np.ndarray]:
        """For each threat which images stand; of each image how many of its corruptions are classified correctly."""
        counts = {} if self.corrupted is None else {WORD: self.corrupted.sum((1, 2)).numpy()}
        return {what: report.robust.numpy() for what, report in self.reports.items()} | counts

    def rows(self, main: Report, side: int, told: Callable[[Report], dict[str, Any]]) -> list[dict[str, Any]]:
        """The union after the threats, corruptions last; `told`: what the row of a threat says of its report."""
        found = [{"what": what, **_share(what, r.robust), **told(r)} for what, r in self.reports.items()]
        if self.reports:
            every = torch.stack([main.robust, *(report.robust for report in self.reports.values())]).all(0)
            found.append({"what": UNION, **_share(UNION, every), "threats": [str(main.threat), *self.reports]})
        if self.corrupted is not None:
            row = {"what": WORD, **_share(WORD, self.corrupted.sum((1, 2)))}
            found.append(row | {"strengths": strengths_of(side), "kinds": _kinds(self.corrupted)})
        return found


def _share(what: str, right: Tensor) -> dict[str, Any]:
    """The interval is of as many images as there are: an image's 75 corruptions are no images of their own."""
    count = right.sum().item() / (KINDS if what == WORD else 1)
    return {"accuracy": count / len(right), "ci95": list(wilson(count, len(right)))}


def _kinds(right: Tensor) -> list[dict[str, Any]]:
    """Of each corruption the mean over severities, and each of them."""
    shares = zip(CORRUPTIONS, right.double().mean(0), strict=True)
    return [{"name": name, "accuracy": a.mean().item(), "by_severity": a.tolist()} for name, a in shares]
