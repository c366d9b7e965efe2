"""What AutoLoRa decides by itself: the loss weights and the learning rate. State machines over numbers, no tensors.

    lambda1 = 1 - SA^a,   lambda2 = lambda2_max * SA^a                a = 1, lambda2_max = 6
    rate    = Auto-PGD's step-size rule (Croce & Hein, 2020) carried from attack steps to epochs

A controller has a `rate`, is told what was measured after each epoch, and answers with a `Verdict`. Its `state()` is a
plain dictionary, so that a run that was killed goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, sqrt
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
    right: Sequence[bool] | None = ()  # the same per validation image, always in the same order; None: nobody looked


class Verdict(NamedTuple):
    best: bool = False  # keep this state: it is the best so far
    halved: bool = False
    restore: bool = False  # go back to the best state
    stop: bool = False
    cooling: bool = False  # from here the rate falls to zero

    @property
    def event(self) -> str:
        words = {"halved": self.halved, "cooling": self.cooling, "restored": self.restore, "best": self.best}
        return "+".join(word for word, on in words.items() if on)


class Controller(Protocol):
    rate: float

    def wants(self, epoch: int) -> bool: ...  # a look at the validation images after it?

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

    def wants(self, epoch: int) -> bool:
        return True

    def observe(self, measured: Measured) -> Verdict:
        trace = self.trace
        score = trace.best if measured.right is None else measured.score  # not looked at: the kept state is back
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


WINDOW = 200  # optimiser steps between two checks (at least INTERVAL epochs): on small data an epoch has a dozen
COOLDOWN = 5  # the last fifth of the epochs, or as many once nothing rises any more
SURE = 1.645  # one-sided 5 %
SURER = 2.5  # against the best of many, of which chance alone makes one look good


def rise(before: Sequence[float], now: Sequence[float]) -> float:
    """How sure it is that the same images are classified well more often now: sum(d) / sqrt(sum(d^2)), about N(0,1)
    where nothing changed (a sign test whose signs have weights: d is an image's share of hits now less before).
    """
    differences = [b - a for a, b in zip(before, now, strict=True)]
    spread = sqrt(sum(d * d for d in differences))
    return sum(differences) / spread if spread else 0.0


@dataclass
class PairedRate:
    """The first rate for as long as it helps, then a straight line to zero.

    Whether it helps is asked over windows of optimiser steps, by a paired test on the same validation images. The
    newest state is kept unless it is surely worse than the one that was kept before, or than the best there was: small
    losses would add up.
    """

    rate: float
    epochs: int
    first: float | None = None  # the rate before the cooldown
    kept: list[float] = field(default_factory=list)  # hits of the kept state, per validation image
    peak: list[float] = field(default_factory=list)  # hits of the state that had most, per validation image
    before: list[float] = field(default_factory=list)  # share of hits in the window before, per validation image
    hits: list[float] = field(default_factory=list)  # in this window, per validation image
    seen: int = 0  # epochs of this window
    checked: int = 0  # steps at the last check
    cooling: int = 0  # epochs of the cooldown that are over
    every: int = 1  # epochs from one look at the validation images to the next
    most: bool = False  # keep the state with most hits, the earlier of two: of a head alone, which cannot drift

    def wants(self, epoch: int) -> bool:
        begins = not self.cooling and epoch >= self.epochs - self._length()  # a state that is worse is not cooled
        return begins or epoch % self.every == 0 or epoch == self.epochs or self.cooling == self._length()

    def observe(self, measured: Measured) -> Verdict:
        if measured.right is None:
            cooling = self.cooling or measured.epoch >= self.epochs - self._length()
            return self._cool(best=False) if cooling else Verdict()
        right = [float(r) for r in measured.right]
        worse = bool(self.kept) and self._worse(right)
        self.kept = self.kept if worse else right
        self.peak = max(self.peak or right, right, key=sum)
        if self.cooling:
            return self._cool(best=not worse)
        self.hits = [a + b for a, b in zip(self.hits, right)] if self.hits else right
        self.seen += 1
        if self._stalled(measured.steps) or measured.epoch >= self.epochs - self._length():
            return self._cool(best=not worse, restore=worse)
        return Verdict(best=not worse)

    def _worse(self, right: list[float]) -> bool:
        if self.most:
            return sum(right) <= sum(self.kept)
        return rise(self.kept, right) < -SURE or rise(self.peak, right) < -SURER

    def _length(self) -> int:
        return max(1, self.epochs // COOLDOWN)

    def _stalled(self, steps: int) -> bool:
        if steps - self.checked < WINDOW or self.seen < INTERVAL:
            return False
        now = [h / self.seen for h in self.hits]
        stalled = bool(self.before) and rise(self.before, now) < SURE
        self.before, self.hits, self.seen, self.checked = now, [], 0, steps
        return stalled

    def _cool(self, *, best: bool, restore: bool = False) -> Verdict:
        if self.first is None:
            self.first = self.rate
        over, length = self.cooling, self._length()
        self.rate, self.cooling = self.first * (length - over) / (length + 1), over + 1
        return Verdict(best, restore=restore, stop=over == length, cooling=over == 0)

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


LOOKING = 0.1  # the share of training's cost that validation may have
FEWEST_LOOKS = 8  # in a run, whatever they cost
COST_OF_LOOK, COST_OF_STEP = 31, 10  # forwards of an image: PGD-10 and a judgement; one gradient and two passes


def between_looks(trained: int, validated: int, epochs: int) -> int:
    """Epochs between two looks at the validation images, where training itself attacks with one gradient."""
    needed = ceil(COST_OF_LOOK * validated / (LOOKING * COST_OF_STEP * trained))
    return max(1, min(needed, epochs // FEWEST_LOOKS))


@dataclass
class SlowStart:
    """Slow start, fast decay (Jeddi et al., 2020): ten levels, five up to the rate on a straight line, five halvings.

    Level u of 0..9 has the rate times (u + 1) / 5, and from the sixth on times 2^(4 - u). The published schedule has
    ten epochs; of more, each level gets its share.
    """

    peak: float
    epochs: int
    rate: float = 0.0
    best: float = -1.0

    def __post_init__(self) -> None:
        self.rate = self._of(1)

    def wants(self, epoch: int) -> bool:
        return True

    def observe(self, measured: Measured) -> Verdict:
        best = measured.right is not None and measured.score > self.best
        self.best = measured.score if best else self.best
        self.rate = self._of(min(measured.epoch + 1, self.epochs))
        return Verdict(best)

    def _of(self, epoch: int) -> float:
        level = 10 * (epoch - 1) // self.epochs
        return self.peak * ((level + 1) / 5 if level <= 4 else 2.0 ** (4 - level))

    def state(self) -> dict[str, Any]:
        return {"rate": self.rate, "best": self.best}

    def load(self, state: dict[str, Any]) -> None:
        self.rate, self.best = state["rate"], state["best"]


@dataclass
class StepRate:
    """A tenth after half of the epochs, and again after five sixths: 30 and 50 of 60. The baselines' schedule."""

    rate: float
    epochs: int
    best: float = -1.0

    def wants(self, epoch: int) -> bool:
        return True

    def observe(self, measured: Measured) -> Verdict:
        best = measured.right is not None and measured.score > self.best
        self.best = measured.score if best else self.best
        if measured.epoch in (self.epochs // 2, self.epochs * 5 // 6):
            self.rate /= 10
        return Verdict(best)

    def state(self) -> dict[str, Any]:
        return {"rate": self.rate, "best": self.best}

    def load(self, state: dict[str, Any]) -> None:
        self.rate, self.best = state["rate"], state["best"]
