"""Auto-PGD for L1 (Croce & Hein, 2021, "Mind the box"): sparse steps, and a radius that shrinks to eps in three stages.

30 steps in the ball of 3 eps, 30 in 2 eps, 40 in eps; each stage starts from the best point of the one before. A step
goes along the signs of the largest gradients, as many as two thirds of the coordinates in which the best point
differs from the image. After each step the best point's sparsity decides: where it fell below 95 %, step size back to
eps and on from the best point; else the step size is divided by 1.5, down to eps / 10.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.apgd import APGD, cross_entropy
from autolora.attacks.engine.draws import normal
from autolora.attacks.engine.network import Network, column, fooled, positive, put, replaced
from autolora.attacks.engine.slots import State
from autolora.threat import Threat

STAGES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # radius in eps, share of the steps


class APGDL1(APGD):
    def __init__(
        self, network: Network, threat: Threat, loss=cross_entropy, steps: int = 100, samples: int = 1
    ) -> None:
        super().__init__(network, threat, loss, steps, samples)
        lengths = [round(share * steps) + 1 for _, share in STAGES]
        self.rounds = sum(lengths)
        self.stage = np.repeat(np.arange(len(STAGES)), lengths)  # of each age
        self.opens = np.append(0, np.cumsum(lengths))  # ages at which a stage begins

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
        radius = torch.full((len(x),), STAGES[0][0] * self.threat.eps, device=x.device)
        point = x + to_ball(x, normal(keys, 0, x[0].numel()).view_as(x), radius)
        zero = torch.zeros(len(x), device=x.device)
        return {
            "x": x,
            "y": y,
            "target": target,
            "point": point,
            "best": point.clone(),
            "best_gradient": torch.zeros_like(x),
            "best_loss": zero - torch.inf,
            "eta": zero.clone(),
            "moved": zero.clone(),  # coordinates in which the best point differs from the image
        }

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        point, age = s["point"], np.minimum(age, self.rounds - 1)
        logits, loss, gradient = self.ascent(s)
        opening, last = (torch.from_numpy(np.isin(age, ages)).to(loss.device) for ages in (self.opens, self.opens - 1))
        radius = self.radius(age, loss.device)
        better = (loss > s["best_loss"]) | opening
        s["best_loss"] = torch.where(better, loss, s["best_loss"])
        s["best"] = put(s["best"], better, point)
        s["best_gradient"] = put(s["best_gradient"], better, gradient)
        back = self._adapt(s, opening, radius)
        origin, gradient = replaced(point, back, s["best"]), replaced(gradient, back, s["best_gradient"])
        offset = origin + self.sparse_step(gradient, s) - s["x"]
        offset = replaced(offset, last, s["best"] - s["x"])
        s["point"] = s["x"] + to_ball(s["x"], offset, self.radius(np.minimum(age + 1, self.rounds - 1), loss.device))
        return fooled(logits, s["y"], point) & (radius <= self.threat.eps), point

    def radius(self, age: np.ndarray, device: torch.device) -> Tensor:
        times = np.array([times for times, _ in STAGES], dtype=np.float32)[self.stage[age]]
        return torch.from_numpy(times).to(device) * self.threat.eps

    def _adapt(self, s: State, opening: Tensor, radius: Tensor) -> Tensor:
        """Step size and sparsity; which rows go on from their best point."""
        moved = (s["best"] != s["x"]).flatten(1).sum(1).float()
        sparser = (moved / s["moved"].clamp_min(1) < 0.95) & ~opening
        shorter = (s["eta"] / 1.5).clamp_min(radius / 10)
        s["eta"] = torch.where(opening | sparser, radius, shorter)
        s["moved"] = moved
        return sparser

    def sparse_step(self, gradient: Tensor, s: State) -> Tensor:
        size = gradient.abs().flatten(1)
        n = size.shape[1]
        place = ((1 - s["moved"] / n / 1.5) * n).long().clamp(0, n - 1)
        least = size.sort(dim=1).values.gather(1, place[:, None])
        sign = (gradient.flatten(1) * (size >= least)).sign()
        return (sign * (s["eta"][:, None] / (sign.abs().sum(1, keepdim=True) + 1e-10))).view_as(gradient)


def apgd_for(norm: str) -> type[APGD]:
    return APGDL1 if norm == "l1" else APGD


def to_ball(x: Tensor, offset: Tensor, radius: Tensor) -> Tensor:
    """The point of the L1 ball, intersected with the box [0,1] around x, that is nearest to `offset` in L2.

    It is sign(offset) min(max(|offset| - lambda, 0), room): lambda = 0 where that lies in the ball, else the sum is
    radius. The sum falls in lambda and is piecewise linear: bisection finds the piece, and its line the root.
    """
    flat, pixels = offset.flatten(1), x.flatten(1)
    size, room = flat.abs(), (positive(flat) - pixels).abs()
    low, high = torch.zeros_like(radius), size.amax(1)
    for _ in range(40):
        middle = (low + high) / 2
        outside = _moves(size, room, middle).sum(1) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    level = torch.where(_moves(size, room, torch.zeros_like(low)).sum(1) > radius, (low + high) / 2, 0.0)
    return (flat.sign() * _moves(size, room, level)).view_as(x) * column((1 - 1e-6) ** (level > 0), x)


def _moves(size: Tensor, room: Tensor, level: Tensor) -> Tensor:
    return (size - level[:, None]).clamp_min_(0).minimum(room)
