"""`--also l2:0.5,linf:4/255,corruptions`: the same images under other threats and corruptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from autolora.attacks.also import Also
from autolora.attacks.also_flags import WORD
from autolora.attacks.report import Report
from autolora.common.errors import BadArgument
from autolora.corruptions.corrupt import SMALLEST
from autolora.threat import Threat


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


def of_threat(report: Report) -> dict[str, Any]:
    """In the row of a threat."""
    known = report.as_record()
    return {key: known[key] for key in ("threat", "version", "deviation", "attacks", "warnings")}
