"""The attack inside training: how far it reaches in this epoch, with one gradient or ten, and its draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.attacks.pgd import pgd, random_in_ball
from autolora.common import distributed
from autolora.threat import Threat
from autolora.training.objectives import wide
from autolora.training.settings import Settings
from autolora.training.single_step import NOISE, STRAIGHT_UP_TO, Straight, bends, single_step

STEPS = 10  # of PGD, in training and in validation
View = Callable[[Tensor], Tensor]


class TrainingAttack:
    """Draws are made for the global batch, and each process takes its part of them."""

    def __init__(self, settings: Settings, device: torch.device, layout: torch.memory_format) -> None:
        self.threat, self.reach = settings.threat, 1.0  # of eps, in this epoch
        self.single = settings.attack != "pgd"
        self.straight = (
            Straight() if settings.attack == "single" and settings.threat.eps > STRAIGHT_UP_TO + 1e-9 else None
        )
        self.noise, self.batch, self.layout = torch.Generator(device), settings.batch_size, layout

    def reached(self) -> Threat:
        """The threat of this epoch."""
        return self.threat if self.reach == 1 else Threat(self.threat.norm, self.reach * self.threat.eps)

    @property
    def straightens(self) -> bool:
        """Not while eps grows: every bend would be larger than all before it, and taken for the sign of a collapse."""
        return self.straight is not None and self.single and self.reach == 1

    def begin(self, seed: int, batch: int) -> None:
        """The draws of a step, for so many images over all processes."""
        self.noise.manual_seed(seed)
        self.batch = batch

    def __call__(self, view: View, x: Tensor, y: Tensor) -> Tensor:
        if self.reach == 0:
            return x
        threat = self.reached()
        noise = distributed.mine(random_in_ball(x.new_empty(()).expand(self.batch, *x.shape[1:]), threat, self.noise))
        noise = noise.contiguous(memory_format=self.layout)
        if self.single:
            return single_step(view, x, y, threat, NOISE * noise)
        return pgd(view, x, y, threat, STEPS, noise=noise)

    def bend(self, view: View, x: Tensor, y: Tensor) -> Tensor:
        """How far the loss of each image is from a straight line between two points of its ball."""
        draws = torch.stack([distributed.mine(2 * self._uniform(x, *x.shape[1:]) - 1) for _ in range(2)])

        def losses(points: Tensor) -> Tensor:
            return F.cross_entropy(wide(view(points)), torch.cat([y] * 3), reduction="none")

        return bends(losses, x, draws, distributed.mine(self._uniform(x)), self.reach * self.threat.eps)

    def _uniform(self, like: Tensor, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape, generator=self.noise, device=like.device, dtype=like.dtype)

    def state(self) -> dict[str, Any]:
        return {"single": self.single, "straight": asdict(self.straight) if self.straight else None}

    def load(self, state: dict[str, Any]) -> None:
        self.single = state["single"]
        self.straight = Straight(**state["straight"]) if state["straight"] else None


def whole_epochs(settings: Settings) -> int:
    """How many epochs have the whole eps: states are compared in these alone."""
    return sum(reach(settings, epoch) == 1 for epoch in range(1, settings.epochs + 1))


def reach(settings: Settings, epoch: int) -> float:
    """Which share of eps the attack has in this epoch: `ramp` is 0 for a quarter, then a straight line for a half."""
    if settings.eps_schedule != "ramp":
        return 1.0
    return min(1.0, max(0.0, (epoch / settings.epochs - 0.25) / 0.5))
