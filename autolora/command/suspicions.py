"""What a low accuracy on clean images says: other pixels than the model was trained on, or labels in another order.

A model that is no better than one constant answer has no robustness to measure. What would help is tried, and named.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from autolora.attacks.report import named
from autolora.backbones.classifier import IMAGENET_MEAN, IMAGENET_STD

SURE = 1.64  # standard deviations: one in twenty
Answers = Callable[[Tensor], Tensor]
# What the model may want, as options of the command: (pixels - mean) / std.
WAYS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "--normalised": (IMAGENET_MEAN, IMAGENET_STD),
    "--mean 0.5 --std 0.5": ((0.5,) * 3, (0.5,) * 3),
    "--mean 0 --std 1/255": ((0.0,) * 3, (1 / 255,) * 3),
}


class NoClassifier(ValueError):
    """Nothing of what it answers has to do with the labels."""


class Recall(NamedTuple):
    """The mean over the classes that are there: of few images of one class it says as much as of many."""

    share: float
    chance: float  # of who answers whatever the image: one over the classes
    deviation: float  # of such a one's share, if it answered as often with each class as this model does

    def beyond_chance(self, deviations: float) -> bool:
        return self.share == 1 or self.share > self.chance + deviations * self.deviation


def recall(found: Tensor, y: Tensor) -> Recall:
    present = y.unique()
    of = [found[y == label] for label in present]
    share = sum((each == label).double().mean().item() for each, label in zip(of, present)) / len(present)
    often = [(found == label).double().mean().item() for label in present]
    variance = sum(q * (1 - q) / len(each) for q, each in zip(often, of))
    return Recall(share, 1 / len(present), sqrt(variance) / len(present))


def look(answers: Answers, x: Tensor, y: Tensor, names: list[str], *, normalised: bool, guessed: bool) -> None:
    """Raise where the accuracy on clean images is that of chance. `guessed`: the labels' order is that of folders."""
    found = _answered(answers, x)
    right, n, has = int((found == y).sum()), len(y), recall(found, y)
    if has.beyond_chance(SURE) or (has.chance == 1 and right):  # of one class no answer shows chance
        return
    said = f"{right} of {n} clean images are classified correctly, no more than by chance"
    if order := another_order(found, y, names):
        where = "the folders" if guessed else "the labels"
        raise NoClassifier(f"{said}: {where} seem to be in another order than the model's ({order}); give --classes")
    if not normalised:
        for option, (mean, std) in WAYS.items():
            again = _answered(answers, (x - _row(mean, x)) / _row(std, x))
            gains = recall(again, y)
            if gains.beyond_chance(2 * SURE) and gains.share > 2 * has.share:
                better = int((again == y).sum())
                raise NoClassifier(f"{said}; with {option} it is {better}: the file expects other pixels than [0,1]")
    raise NoClassifier(f"{said}: random weights, other pixels than [0,1] (--mean, --std), or labels of other images?")


def _answered(answers: Answers, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([answers(part).argmax(1) for part in x.split(64)])


def _row(values: tuple[float, ...], x: Tensor) -> Tensor:
    return torch.tensor(values[: x.shape[1]], dtype=x.dtype).view(1, -1, 1, 1)


def another_order(found: Tensor, y: Tensor, names: list[str]) -> str:
    """Which class the images of another one are taken for, where that is nearly always the same one."""
    present = y.unique().tolist()
    usual = {label: int(found[y == label].mode().values) for label in present}
    agreeing = sum(int((found[y == label] == answer).sum()) for label, answer in usual.items())
    if len(set(usual.values())) < len(usual) or len(usual) < 2 or agreeing < 0.6 * len(y):
        return ""
    moved = [(label, answer) for label, answer in usual.items() if label != answer]
    shown = [f"images of {named(names, label)!r} are taken for class {answer}" for label, answer in moved[:2]]
    return ", ".join(shown)
