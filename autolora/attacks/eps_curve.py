"""Accuracy against the radius, by a quick attack: what the published number sits on, and whether the attack works at
all.

Each radius is attacked afresh by APGD-CE, so that accuracies which do not fall with the radius show a broken attack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from autolora.attacks.apgd_l1 import apgd_for
from autolora.attacks.checks import huge
from autolora.attacks.engine.network import Network, predicted
from autolora.attacks.engine.prepare import at_rest, default_batch, device_of, full_precision, likely, prepared
from autolora.attacks.engine.slots import Images, Slots
from autolora.common import distributed
from autolora.common.malloc import heap_kept
from autolora.threat import Threat

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the threat's eps
STEPS = 20


class Point(NamedTuple):
    eps: float
    accuracy: float
    attack: str


def radii(threat: Threat, size: int) -> list[float]:
    """Around the threat's own radius, and one that no classifier survives."""
    far = huge(threat, size)
    return [share * threat.eps for share in SHARES if share * threat.eps < far] + [far]


def standing(network: Network, images: Images, clean: Tensor, threat: Threat, seed: int, steps: int = STEPS) -> Tensor:
    """Which images still stand after APGD-CE: bool [n]."""
    robust = clean.clone()

    def finish(job: tuple[int, int], point: Tensor | None) -> None:
        robust[job[0]] = point is None

    jobs = [(image, 0) for image in clean.nonzero().flatten().tolist()]
    Slots(apgd_for(threat.norm)(network, threat, steps=steps), images, "curve", seed, network.batch).run(jobs, finish)
    return robust


def accuracy_at(network: Network, images: Images, clean: Tensor, threat: Threat, eps: float, seed: int) -> Point:
    robust = standing(network, images, clean, Threat(threat.norm, eps), seed)
    return Point(eps, torch.mean(robust.double()).item(), f"apgd-ce-{STEPS}")


def eps_curve(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    batch_size: int | None = None,
) -> list[Point]:
    """The clean accuracy, then one point for each of `radii`; the processes share the radii out."""
    device = device_of(model, torch.as_tensor(x))
    x, y, names = prepared(x, y, ids)
    with at_rest(model), full_precision(), heap_kept():
        network = Network(model, batch_size or default_batch(device, model, x[:1].to(device)))
        logits = network.all_logits(x, device)
        images = Images(x.to(device), y.to(device), likely(logits, y.to(device)), names)
        clean = predicted(logits).cpu() == y
        wanted = radii(threat, x[0].numel())
        mine = wanted[distributed.rank() :: distributed.world()]
        points = distributed.gathered({eps: accuracy_at(network, images, clean, threat, eps, seed) for eps in mine})
    return [Point(0.0, clean.double().mean().item(), "none")] + [points[eps] for eps in wanted]
