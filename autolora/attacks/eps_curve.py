"""Accuracy against the radius, by a quick attack: what the published number sits on, and whether the attack works at
all.

Each radius is attacked afresh by APGD-CE, so that accuracies which do not fall with the radius show a broken attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from torch import Tensor

from autolora.attacks.apgd_l1 import apgd_for
from autolora.attacks.checks import huge, in_advance, known_labels, pixels
from autolora.attacks.engine.prepare import device_of
from autolora.attacks.engine.slots import Job, Slots
from autolora.attacks.evaluation import Answers, Evaluation, Settings, opened
from autolora.attacks.mixture import is_mixture, two_ways, with_a_gradient
from autolora.attacks.verdicts import require
from autolora.attacks.versions import Step
from autolora.common import distributed
from autolora.data.images import TestImages
from autolora.threat import Threat

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the threat's eps
STEPS = 20


class Point(NamedTuple):
    eps: float
    accuracy: float
    attack: str


def eps_curve(
    model: Answers,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> list[Point]:
    """The clean accuracy, then one point for each of `radii`; the processes share the radii out."""
    device = device_of(model, x)
    return curve_of(model, TestImages.of(x, y, ids), threat, Settings(seed=seed, batch_size=batch_size, device=device))


def curve_of(model: Answers, images: TestImages, threat: Threat, settings: Settings) -> list[Point]:
    """`eps_curve` on images that are shared with others."""
    require(in_advance(model, gradients=False))
    wanted = radii(threat, images.x[0].size)
    with opened(with_a_gradient(model), images, threat, settings) as e:
        require([pixels(e.x)])
        known_labels(e.y, e.logits.shape[1])
        mine, steps = distributed.mine(wanted), ways(model, threat.norm)
        points = distributed.gathered({eps: accuracy_at(e, eps, steps) for eps in mine})
        return [Point(0.0, e.clean.double().mean().item(), "none")] + [points[eps] for eps in wanted]


def radii(threat: Threat, size: int) -> list[float]:
    """Around the threat's own radius, and one that no classifier survives."""
    far = huge(threat, size)
    return [share * threat.eps for share in SHARES if share * threat.eps < far] + [far]


def ways(model: Answers, norm: str) -> list[Step]:
    """The quick attack; on a mixture all three ways of it."""
    quick = Step("curve", partial(apgd_for(norm), steps=STEPS))
    return [quick, *two_ways(cast(Any, model), [quick])] if is_mixture(model) else [quick]


def accuracy_at(e: Evaluation, eps: float, steps: list[Step]) -> Point:
    """After APGD-CE at this radius, on every image that is right."""
    robust, threat = e.clean.clone(), Threat(e.threat.norm, eps)

    def finish(job: Job, point: Tensor | None) -> None:
        robust[job[0]] = point is None

    for step in steps:
        attack = step.attack(e.network, threat)
        slots = Slots(attack, e.images, e.targets, name=step.name, seed=e.settings.seed, batch=e.network.batch)
        slots.run([(image, 0) for image in robust.nonzero().flatten().tolist()], finish)
    return Point(eps, robust.double().mean().item(), f"apgd-ce-{STEPS}")
