"""What AutoLoRa decides by itself: the loss weights and the learning rate. State machines over numbers, no tensors.

    lambda1 = 1 - SA^a,   lambda2 = lambda2_max * SA^a                a = 1, lambda2_max = 6
    rate    = Auto-PGD's step-size rule (Croce & Hein, 2020) carried from attack steps to epochs

A controller has a `rate`, is told what was measured after each epoch, and answers with a `Verdict`. Its `state()` is a
plain dictionary, so that a run that was killed goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

FIRST_CHECK, INTERVAL = 5, 4  # checkpoints after epochs 5, 9, 13, ...: 57 is the last of 60
LOWEST_RATE = 1e-5


class Scalars(NamedTuple):
    """The weights of the three terms of the loss."""

    lambda1: float  # of the natural cross-entropy; the adversarial one gets 1 - lambda1
    lambda2: float  # of the distillation


def scalars(accuracy: float, power: float = 1.0, ceiling: float = 6.0) -> Scalars:
    """lambda1 = 1 - SA^a and lambda2 = lambda2_max * SA^a, with SA of the natural branch on the training set."""
    return Scalars(1 - accuracy**power, ceiling * accuracy**power)


class Measured(NamedTuple):
    """What a controller may look at after an epoch."""

    epoch: int  # counted from 1
    steps: int  # optimiser steps so far
    score: float  # what the method is selected by: validation RA (natural and linear: validation SA)
    right: Sequence[bool] = ()  # the same per validation image, always in the same order, for paired tests


class Verdict(NamedTuple):
    best: bool = False  # keep this state: it is the best so far
    halved: bool = False
    restore: bool = False  # go back to the best state
    stop: bool = False

    @property
    def event(self) -> str:
        return "+".join(w for w, on in [("halved", self.halved), ("restored", self.restore), ("best", self.best)] if on)


class Controller(Protocol):
    rate: float

    def observe(self, measured: Measured) -> Verdict: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


def checkpoints(epochs: int) -> list[int]:
    """After epoch 5 and every fourth one from there. The last epoch is none: nothing would be trained after it."""
    return list(range(FIRST_CHECK, epochs, INTERVAL))


@dataclass
class Trace:
    """What the learning-rate rule remembers."""

    best: float = -1.0
    best_at_check: float = -1.0
    last: float = -1.0
    rises: int = 0  # comparisons RA_e > RA_{e-1} that held since the last checkpoint
    halved_at_check: bool = True  # as in Auto-PGD: the second condition cannot hold at the first checkpoint
    checks: int = 0


def stalled_as_published(trace: Trace) -> bool:
    """Not halved at the last checkpoint, and the best RA has not risen since it."""
    return not trace.halved_at_check and trace.best <= trace.best_at_check


def stalled_as_released(trace: Trace) -> bool:
    """In the released code the first half of the condition is always true from the second checkpoint on."""
    return trace.checks > 0 and trace.best <= trace.best_at_check


@dataclass
class AutoRate:
    """Halve the rate and go back to the best state where progress is too rare; stop below 1e-5."""

    rate: float
    epochs: int
    stalled: Callable[[Trace], bool] = stalled_as_published
    trace: Trace = field(default_factory=Trace)

    def observe(self, measured: Measured) -> Verdict:
        trace, score = self.trace, measured.score
        trace.rises += measured.epoch > 1 and score > trace.last
        best = score > trace.best
        trace.last, trace.best = score, max(score, trace.best)
        if measured.epoch not in checkpoints(self.epochs):
            return Verdict(best)
        halve = trace.rises < 0.75 * INTERVAL or self.stalled(trace)
        trace.rises, trace.halved_at_check, trace.best_at_check = 0, halve, trace.best
        trace.checks += 1
        if halve:
            self.rate /= 2
        return Verdict(best, halved=halve, restore=halve and not best, stop=self.rate < LOWEST_RATE)

    def state(self) -> dict[str, Any]:
        return {"rate": self.rate, "trace": asdict(self.trace)}

    def load(self, state: dict[str, Any]) -> None:
        self.rate, self.trace = state["rate"], Trace(**state["trace"])


@dataclass
class StepRate:
    """A tenth after half of the epochs, and again after five sixths: 30 and 50 of 60. The baselines' schedule."""

    rate: float
    epochs: int
    best: float = -1.0

    def observe(self, measured: Measured) -> Verdict:
        best = measured.score > self.best
        self.best = max(self.best, measured.score)
        if measured.epoch in (self.epochs // 2, self.epochs * 5 // 6):
            self.rate /= 10
        return Verdict(best)

    def state(self) -> dict[str, Any]:
        return {"rate": self.rate, "best": self.best}

    def load(self, state: dict[str, Any]) -> None:
        self.rate, self.best = state["rate"], state["best"]
