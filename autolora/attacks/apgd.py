"""Auto-PGD (Croce & Hein, 2020): gradient ascent whose step size needs no tuning.

    z      = P(x_k + eta * direction(grad f(x_k)))
    x_k+1  = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_k-1))                                       (eq. 3 and 4)

eta starts at 2 eps. At each checkpoint it is halved, and the search goes on from the best point so far, when fewer
than 75 % of the steps since the last checkpoint raised the loss, or when neither eta nor the best loss changed there
(conditions 1 and 2).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.attacks.engine.draws import normal, uniform
from autolora.attacks.engine.network import Network, column, fooled, lengths, put, replaced
from autolora.attacks.engine.slots import State
from autolora.attacks.pgd import ascent_direction, project
from autolora.threat import Threat

RHO, MOMENTUM = 0.75, 0.75


def cross_entropy(z: Tensor, y: Tensor, _target: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def dlr(z: Tensor, y: Tensor, _target: Tensor) -> Tensor:
    """Difference of logits ratio, -(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3): needs three classes (eq. 6)."""
    top = z.topk(3, dim=1).values
    return -(_at(z, y) - others(z, y)) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(z: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2): needs four classes (eq. 7)."""
    top = z.topk(4, dim=1).values
    return -(_at(z, y) - _at(z, target)) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def probability_margin(z: Tensor, y: Tensor, _target: Tensor) -> Tensor:
    """max_{i != y} p_i - p_y with p the softmax of z (Xie et al., 2024): any number of classes."""
    p = z.softmax(dim=1)
    return others(p, y) - _at(p, y)


def others(z: Tensor, y: Tensor) -> Tensor:
    """The largest logit but y's."""
    return z.scatter(1, y[:, None], -torch.inf).amax(1)


def _at(z: Tensor, index: Tensor) -> Tensor:
    return z.gather(1, index[:, None]).squeeze(1)


def checkpoints(steps: int) -> dict[int, int]:
    """Step of each checkpoint -> steps since the last: 0.22, then increments max(p_j - p_j-1 - 0.03, 0.06)."""
    width, shrink, least = (max(int(p * steps), 1) for p in (0.22, 0.03, 0.06))
    found, at = {}, width
    while at <= steps:
        found[at] = width
        width = max(width - shrink, least)
        at += width
    return found


class APGD:
    """Linf and L2. One gradient at the start and one after each step: steps + 1 in all."""

    def __init__(
        self, network: Network, threat: Threat, loss=cross_entropy, steps: int = 100, samples: int = 1
    ) -> None:
        self.network, self.threat, self.loss, self.samples = network, threat, loss, samples
        self.rounds, self.gradients, self.forwards = steps + 1, float(samples), 0.0
        self.widths = np.zeros(steps + 2, dtype=np.int64)
        for at, width in checkpoints(steps).items():
            self.widths[at] = width

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
        point = start_point(x, keys, self.threat)
        zero = torch.zeros(len(x), device=x.device)
        return {
            "x": x,
            "y": y,
            "target": target,
            "point": point,
            "previous": point.clone(),
            "best": point.clone(),
            "best_gradient": torch.zeros_like(x),
            "eta": zero + 2 * self.threat.eps,
            "best_loss": zero - torch.inf,
            "last_loss": zero + torch.inf,  # so that the first value counts as no rise
            "checked_loss": zero.clone(),
            "raised": zero.clone(),
            "reduced": zero.bool() | True,
        }

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        point = s["point"]
        logits, loss, gradient = self.ascent(s)
        better = loss > s["best_loss"]
        s["best_loss"] = torch.where(better, loss, s["best_loss"])
        s["best"] = put(s["best"], better, point)
        s["best_gradient"] = put(s["best_gradient"], better, gradient)
        s["raised"] += loss > s["last_loss"]
        s["last_loss"] = loss
        first = torch.from_numpy(age == 0).to(loss.device)
        s["checked_loss"] = torch.where(first, loss, s["checked_loss"])
        origin = point
        widths = self.widths[np.minimum(age, len(self.widths) - 1)]
        if widths.any():
            halved = self._check(s, torch.from_numpy(widths).to(loss.device))
            origin = replaced(point, halved, s["best"])
            gradient = replaced(gradient, halved, s["best_gradient"])
        s["previous"], s["point"] = origin, self.move(s, origin, gradient, first)
        return fooled(logits, s["y"], point), point

    def ascent(self, s: State) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient averaged over `samples` passes, for networks that answer at random (EOT)."""

        def loss(z: Tensor, rows: slice) -> Tensor:
            return self.loss(z, s["y"][rows], s["target"][rows])

        logits, values, total = self.network.gradient(s["point"], loss)
        for _ in range(self.samples - 1):
            logits, values, gradient = self.network.gradient(s["point"], loss)
            total = total + gradient
        return logits, values, total if self.samples == 1 else total / self.samples

    def _check(self, s: State, width: Tensor) -> Tensor:
        """Conditions 1 and 2, for the rows that are at a checkpoint."""
        here = width > 0
        few = s["raised"] < RHO * width
        stale = ~s["reduced"] & (s["best_loss"] <= s["checked_loss"])
        halved = here & (few | stale)
        s["eta"] = torch.where(halved, s["eta"] / 2, s["eta"])
        s["reduced"] = torch.where(here, halved, s["reduced"])
        s["checked_loss"] = torch.where(here, s["best_loss"], s["checked_loss"])
        s["raised"] = s["raised"] * ~here
        return halved

    def move(self, s: State, origin: Tensor, gradient: Tensor, first: Tensor) -> Tensor:
        step = ascent_direction(gradient, self.threat).mul_(column(s["eta"], origin))
        z = project(step.add_(origin), s["x"], self.threat)
        a = column(torch.where(first, 1.0, MOMENTUM), origin)
        ahead = z.sub_(origin).mul_(a).add_(origin)
        return project(ahead.add_((origin - s["previous"]).mul_(1 - a)), s["x"], self.threat)


def start_point(x: Tensor, keys: Tensor, threat: Threat) -> Tensor:
    """On the surface of the ball (Linf: uniform in the cube, then stretched to its surface), cut off by the box."""
    size = x[0].numel()
    noise = uniform(keys, 0, size) * 2 - 1 if threat.norm == "linf" else normal(keys, 0, size)
    noise = noise / lengths(noise, threat.norm)[:, None]
    return (x + threat.eps * noise.view_as(x)).clamp(0, 1)
