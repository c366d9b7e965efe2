"""`--also l2:0.5,linf:4/255,corruptions`: the same images under other threats and corruptions.

Rows of the record and columns of the flags, as `evaluate.also` has them (docs/other-threats.md); the union is of the
images that stand every threat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.report import Report
from autolora.command.also_flags import UNION, WORD
from autolora.common.errors import BadArgument
from autolora.common.statistics import wilson
from autolora.corruptions.corrupt import CORRUPTIONS, SMALLEST, strengths_of
from autolora.threat import Threat


class Also(NamedTuple):
    """What was found beside the main threat."""

    reports: dict[str, Report]  # by threat
    corrupted: Tensor | None  # which images are right: bool [n,15,5]

    def columns(self) -> dict[str, np.ndarray]:
        """For each threat which images stand; of each image how many of its corruptions are classified correctly."""
        counts = {} if self.corrupted is None else {WORD: self.corrupted.sum((1, 2)).numpy()}
        return {what: report.robust.numpy() for what, report in self.reports.items()} | counts

    def rows(self, main: Report, side: int) -> list[dict[str, Any]]:
        found = [{"what": what, **_share(r.robust), **_of_threat(r)} for what, r in self.reports.items()]
        if self.reports:
            every = torch.stack([main.robust, *(report.robust for report in self.reports.values())]).all(0)
            found.append({"what": UNION, **_share(every), "threats": [str(main.threat), *self.reports]})
        if self.corrupted is not None:
            found.append(
                {
                    "what": WORD,
                    **_share(self.corrupted),
                    "strengths": strengths_of(side),
                    "kinds": _kinds(self.corrupted),
                }
            )
        return found


def words(text: str | None, main: Threat, shape: tuple[int, ...]) -> list[str]:
    """As everybody writes them: threats by their text, and perhaps corruptions."""
    asked = [word.strip() for word in (text or "").split(",") if word.strip()]
    found = list(dict.fromkeys(word if word == WORD else str(Threat.parse(word)) for word in asked))
    if str(main) in found:
        raise BadArgument("also", text, f"{main} is the threat itself")
    if WORD in found and (min(shape[1:]) < SMALLEST or shape[0] != 3):
        raise BadArgument("also", text, f"corruptions need images of three channels and {SMALLEST} pixels a side")
    return found


def measured(asked: list[str], attack: Callable[[Threat, str], Report], corrupt: Callable[[str], Tensor]) -> Also:
    """`attack` and `corrupt` are told the name under which their progress is kept."""
    threats = [word for word in asked if word != WORD]
    reports = {word: attack(Threat.parse(word), word.replace("/", "-").replace(":", "-")) for word in threats}
    return Also(reports, corrupt(WORD) if WORD in asked else None)


def _share(right: Tensor) -> dict[str, Any]:
    """The interval is of as many images as there are: an image's 75 corruptions are no images of their own."""
    accuracy = right.double().mean().item()
    return {"accuracy": accuracy, "ci95": list(wilson(accuracy * len(right), len(right)))}


def _of_threat(report: Report) -> dict[str, Any]:
    known = report.as_record()
    return {key: known[key] for key in ("threat", "version", "deviation", "attacks", "warnings")}


def _kinds(right: Tensor) -> list[dict[str, Any]]:
    """Of each corruption the mean over severities, and each of them."""
    shares = zip(CORRUPTIONS, right.double().mean(0), strict=True)
    return [{"name": name, "accuracy": a.mean().item(), "by_severity": a.tolist()} for name, a in shares]
