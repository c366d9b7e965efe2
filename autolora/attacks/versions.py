"""What each version of AutoAttack runs, in order, and in what it deviates from the standard where classes are few."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

from autolora.attacks import malt
from autolora.attacks.apgd import dlr, probability_margin, targeted_dlr
from autolora.attacks.apgd_l1 import apgd_for
from autolora.attacks.engine.network import Network
from autolora.attacks.engine.slots import Attack
from autolora.attacks.fab import FAB, TargetedFAB
from autolora.attacks.square import SquareL1, SquareL2, SquareLinf
from autolora.common.errors import BadArgument
from autolora.threat import Threat

VERSIONS = ("standard", "plus", "strong", "rand", "fast")
SQUARES = {"linf": SquareLinf, "l2": SquareL2, "l1": SquareL1}


@dataclass(frozen=True)
class Budget:
    """How much each attack may try; what it is by default is part of the standard."""

    steps: int = 100  # of APGD and FAB
    queries: int = 5000  # of Square
    targets: int = 9  # classes that the targeted attacks aim at
    samples: int = 20  # passes over which version rand averages

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise BadArgument(name, value, "expected a whole number from 1")


STANDARD = Budget()


@dataclass(frozen=True)
class Step:
    """One attack of a version: what to run, and how often per image (targets or restarts)."""

    name: str
    attack: Callable[[Network, Threat], Attack]
    attempts: int = 1
    every: int = 10  # steps between looks at which rows are through, on a GPU
    gradients: bool = True  # False: scores alone
    ranked: int = 0  # classes that MALT ranks before; 0: the targets are the most likely ones
    half: bool = True  # may run on a copy in bfloat16 (precision="mixed"); what it leaves meets an attack in float32


class Work(NamedTuple):
    """Passes of one image that stands to the end."""

    gradients: float
    forwards: float

    @property
    def in_forwards(self) -> float:
        return 2 * self.gradients + self.forwards


def work(step: Step, network: Network, threat: Threat) -> Work:
    attack = step.attack(network, threat)
    rounds = step.attempts * attack.rounds
    return Work(rounds * attack.gradients + step.ranked, rounds * attack.forwards)


Plan = Callable[[int], tuple[list[Step], str | None]]  # classes -> the attacks, and their deviation from the standard


def square_alone(norm: str, queries: int) -> Plan:
    return lambda classes: ([_square(norm, queries)], "Square alone")


def _square(norm: str, queries: int) -> Step:
    return Step("square", partial(SQUARES[norm], queries=queries), every=50, gradients=False, half=False)


def plan_of(version: str, norm: str, classes: int, budget: Budget = STANDARD) -> tuple[list[Step], str | None]:
    """The attacks of a version, and in what they deviate from the standard: few classes, or another budget."""
    targets = min(budget.targets, classes - 1)
    gradient = partial(apgd_for(norm), steps=budget.steps)
    few = min(5, targets) if norm == "l1" else targets
    apgd_t = Step("apgd-t", partial(gradient, loss=targeted_dlr), few, half=False)
    fab_t = Step("fab-t", partial(TargetedFAB, steps=budget.steps), targets)
    black_box = _square(norm, budget.queries)
    standard = [Step("apgd-ce", gradient, 5 if norm == "l1" else 1), apgd_t, fab_t, black_box]
    steps = {
        "standard": standard,
        "strong": [
            *standard,  # first, and with the same draws: what is added can only lower the figure
            replace(apgd_t, name="apgd-malt", attempts=targets, ranked=min(malt.MOST, classes - 1)),
            Step("apgd-pm", partial(gradient, loss=probability_margin), 5 if norm == "l1" else 1, half=False),
        ],
        "fast": [Step("apgd-ce", gradient), apgd_t],
        "plus": [
            Step("apgd-ce", gradient, 5),
            Step("apgd-dlr", partial(gradient, loss=dlr), 5),
            Step("fab", partial(FAB, steps=budget.steps), 5),
            black_box,
            apgd_t,
            fab_t,
        ],
        "rand": [
            Step("apgd-ce", partial(gradient, samples=budget.samples)),
            Step("apgd-dlr", partial(gradient, loss=dlr, samples=budget.samples)),
        ],
    }[version]
    lacking = ["apgd-t", "apgd-malt"] * (classes < 4) + ["apgd-dlr"] * (classes < 3)
    notes = [f"{s.name} needs more than {classes} classes and is left out" for s in steps if s.name in lacking]
    if targets < budget.targets:
        notes.append(f"{targets} target classes, there are no more")
    if version == "fast":
        notes.append("only APGD-CE and APGD-T")
    notes += [f"{n} {name} instead of {usual}" for name, n, usual in _changed(budget)]
    return in_float32([s for s in steps if s.name not in lacking]), "; ".join(notes) or None


def _changed(budget: Budget) -> list[tuple[str, int, int]]:
    usual = asdict(STANDARD)
    return [(name, n, usual[name]) for name, n in asdict(budget).items() if n != usual[name]]


def in_float32(steps: list[Step]) -> list[Step]:
    """The last attack is never one in bfloat16, and none is where no other white-box attack is in float32 (apgd-t, from
    four classes on)."""
    alone = all(step.name != "apgd-t" for step in steps)
    return [replace(s, half=False) if alone or s is steps[-1] else s for s in steps]
