"""The sixteen ways in which a robustness number goes wrong, and the verdict on each.

A check may have several parts, each a `Check` of the same number; the record holds one row for each number, with its
worst verdict. Where the part that the check is named by was not made, no other part makes it pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail", "not run"]
GRAVITY: tuple[Verdict, ...] = ("not run", "pass", "warn", "fail")
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
    10: "the attack works",
    11: "enough images",
    12: "nothing was chosen on the test part",
    13: "robust means right when clean",
    14: "the evaluated weights are those that ship",
    15: "no image is in two splits",
    16: "full precision",
}
# What has happened where the check of that number warns or fails: "warn: enough images" would say the opposite.
FAULTS = {
    1: "not in eval mode, or changed by the attack",
    2: "predictions depend on the batch",
    3: "pixels are not those of images in [0,1]",
    4: "eps in the wrong unit",
    5: "outside ball or box",
    6: "probabilities, not logits",
    7: "the network answers at random",
    8: "masked gradients",
    9: "black box beats white box",
    10: "the attack is too weak, or labels are of other images",
    11: "too few images",
    12: "something was chosen on the test part",
    13: "robust and wrong when clean",
    14: "other weights than those that ship",
    15: "images in two splits, or nearly",
    16: "low precision",
}
NOT_RUN = "concerns what lies around this evaluation: its caller makes it"


@dataclass(frozen=True)
class Check:
    """One part of a check, and what came of it."""

    number: int
    name: str
    verdict: Verdict
    detail: str

    @property
    def title(self) -> str:
        """For people; the record has the name in any case."""
        return FAULTS[self.number] if self.verdict in ("warn", "fail") else self.name

    def as_record(self) -> dict[str, Any]:
        return {"number": self.number, "name": self.name, "verdict": self.verdict, "detail": self.detail}


class CheckFailed(ValueError):
    """The number would not be worth having; `checks` says why."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks
        super().__init__("; ".join(f"check {c.number}, {c.name}: {c.detail}" for c in checks if c.verdict == "fail"))


def require(checks: list[Check]) -> None:
    if any(c.verdict == "fail" for c in checks):
        raise CheckFailed(checks)


def ordered(checks: Iterable[Check]) -> list[Check]:
    """By number; those that nobody has made say so."""
    made = list(checks)
    missing = set(NAMES) - {c.number for c in made}
    return sorted([*made, *(Check(n, NAMES[n], "not run", NOT_RUN) for n in missing)], key=lambda c: c.number)


def one_each(checks: Sequence[Check]) -> list[Check]:
    """One row for each number: the worst verdict of its parts, and what each of them says."""
    numbers = sorted({c.number for c in checks})
    return [_joined(number, [c for c in checks if c.number == number]) for number in numbers]


def _joined(number: int, parts: list[Check]) -> Check:
    name = NAMES[number]
    said = [
        c.detail if c.name == name else f"{c.name}: {c.detail}" for c in sorted(parts, key=lambda c: c.name != name)
    ]
    worst = max((c.verdict for c in parts), key=GRAVITY.index)
    main = {c.verdict for c in parts if c.name == name}
    return Check(number, name, "not run" if (worst, main) == ("pass", {"not run"}) else worst, "; ".join(said))
