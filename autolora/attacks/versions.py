"""What each version of AutoAttack runs, in order, and in what it deviates from the standard where classes are few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from autolora.attacks.apgd import dlr, targeted_dlr
from autolora.attacks.apgd_l1 import apgd_for
from autolora.attacks.engine.network import Network
from autolora.attacks.engine.slots import Attack
from autolora.attacks.fab import FAB, TargetedFAB
from autolora.attacks.square import SquareL1, SquareL2, SquareLinf
from autolora.threat import Threat

VERSIONS = ("standard", "plus", "rand", "fast")
SQUARES = {"linf": SquareLinf, "l2": SquareL2, "l1": SquareL1}
TARGETS, SAMPLES = 9, 20


@dataclass(frozen=True)
class Step:
    """One attack of a version: what to run, and how often per image (targets or restarts)."""

    name: str
    attack: Callable[[Network, Threat], Attack]
    ranks: int = 1
    every: int = 10  # steps between looks at which rows are through, on a GPU
    copy: str = "half"  # of Copies, for precision="fast"; what the quicker attacks leave meets one in float32


def plan_of(version: str, norm: str, classes: int) -> tuple[list[Step], str | None]:
    """The attacks of a version, and in what they deviate from the standard for so few classes."""
    targets = min(TARGETS, classes - 1)
    gradient = apgd_for(norm)
    few = min(5, targets) if norm == "l1" else targets
    apgd_t = Step("apgd-t", partial(gradient, loss=targeted_dlr), few, copy="full")
    fab_t = Step("fab-t", TargetedFAB, targets)
    black_box = Step("square", SQUARES[norm], every=50, copy="full")
    steps = {
        "standard": [Step("apgd-ce", gradient, 5 if norm == "l1" else 1), apgd_t, fab_t, black_box],
        "fast": [Step("apgd-ce", gradient), apgd_t],
        "plus": [
            Step("apgd-ce", gradient, 5),
            Step("apgd-dlr", partial(gradient, loss=dlr), 5),
            Step("fab", FAB, 5),
            black_box,
            apgd_t,
            fab_t,
        ],
        "rand": [
            Step("apgd-ce", partial(gradient, samples=SAMPLES)),
            Step("apgd-dlr", partial(gradient, loss=dlr, samples=SAMPLES)),
        ],
    }[version]
    lacking = ["apgd-t"] * (classes < 4) + ["apgd-dlr"] * (classes < 3)
    notes = [f"{s.name} needs more than {classes} classes and is left out" for s in steps if s.name in lacking]
    if targets < TARGETS:
        notes.append(f"{targets} target classes, there are no more")
    if version == "fast":
        notes.append("only APGD-CE and APGD-T")
    return in_float32([s for s in steps if s.name not in lacking]), "; ".join(notes) or None


def in_float32(steps: list[Step]) -> list[Step]:
    """The last attack is never one in bfloat16, and none is where no other white-box attack is in float32 (apgd-t, from
    four classes on)."""
    alone = all(step.name != "apgd-t" for step in steps)
    return [replace(s, copy="full") if s.copy == "half" and (alone or s is steps[-1]) else s for s in steps]
