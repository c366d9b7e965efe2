"""Fast Adaptive Boundary attack (Croce & Hein, 2020): the nearest point on the other side of the decision boundary.

At x_k the boundary towards class t is the hyperplane f(x_k) + <g, z - x_k> = 0 with f = z_t - z_y and g its gradient.
With the projections of x_k and of the clean x onto hyperplane and box (directions d_k and d_0):

    alpha  = min(|d_k| / (|d_k| + |d_0|), 0.1)
    x_k+1  = clip( (1 - alpha)(x_k + 1.05 d_k) + alpha (x + 1.05 d_0) )                            (eq. 7 to 9)

and a step back towards x, x + 0.9 (x_k+1 - x), whenever x_k+1 is misclassified. FAB minimises the norm; here a row
stops as soon as an adversarial point lies inside the ball, which is all that robust accuracy asks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.apgd import start_point
from autolora.attacks.engine.network import Network, column, fooled, in_groups, lengths, positive, replaced
from autolora.attacks.engine.slots import State
from autolora.threat import Threat

ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
FAR, MOST_STEPS = 1e30, 100  # FAR is finite, so that FAR * 0 is 0


class FAB:
    """Towards any class: the one whose linearised boundary is nearest, at the cost of one gradient per class."""

    def __init__(self, network: Network, threat: Threat, steps: int = 100) -> None:
        self.network, self.threat, self.rounds = network, threat, steps
        self.gradients, self.forwards = 5.5, 1.0  # of ten classes: ten ways back from one forward, and a look

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
        """The first run starts from the image, restarts from half-way to the surface of the ball."""
        restart = torch.from_numpy(attempts > 0).to(x.device)
        away = (x + (start_point(x, keys, self.threat) - x) / 2).clamp(0, 1)
        return {"x": x, "y": y, "target": target, "point": replaced(x, restart, away)}

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        x = s["x"]
        f, g = self._boundary(s)
        point = in_groups(self._nearer, x, s["point"], f, g)
        wrong = fooled(self.network.logits(point), s["y"], point)
        offset = point - x
        inside = lengths(offset, self.threat.norm) <= self.threat.eps
        s["point"] = replaced(point, wrong, offset.mul_(BETA).add_(x))
        return wrong & inside, point

    def _nearer(self, x: Tensor, point: Tensor, f: Tensor, g: Tensor) -> Tensor:
        """The next point of each row, from the linearised f at the last one."""
        norm = self.threat.norm
        there = f + (g * (x - point)).flatten(1).sum(1)  # the linearised f at x
        d_k, d_0 = to_hyperplane(point, g, f, norm), to_hyperplane(x, g, there, norm)
        a, b = (lengths(d, norm).clamp_min(1e-8) for d in (d_k, d_0))
        alpha = column((a / (a + b)).clamp_max(ALPHA_MAX), x)
        here, from_x = point.add(d_k, alpha=ETA), x.add(d_0, alpha=ETA)
        return here.lerp_(from_x, alpha).clamp_(0, 1)

    def _boundary(self, s: State) -> tuple[Tensor, Tensor]:
        logits, gradients = self.network.gradients(s["point"])
        rows = torch.arange(len(logits), device=logits.device)
        f = logits - logits[rows, s["y"], None]
        g = gradients - gradients[rows, s["y"], None]
        dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[self.threat.norm]
        distance = f.abs() / (lengths(g.flatten(0, 1), dual).view_as(f) + 1e-12)
        nearest = distance.scatter(1, s["y"][:, None], torch.inf).argmin(1)
        return f[rows, nearest], g[rows, nearest]


class TargetedFAB(FAB):
    """Towards one class: a gradient a step, and a forward to see whether the boundary is crossed."""

    def __init__(self, network: Network, threat: Threat, steps: int = 100) -> None:
        super().__init__(network, threat, steps)
        self.gradients = 1.0

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
        return {"x": x, "y": y, "target": target, "point": x.clone()}

    def _boundary(self, s: State) -> tuple[Tensor, Tensor]:
        pair = torch.stack([s["target"], s["y"]], 1)
        _, f, g = self.network.gradient(
            s["point"], lambda z, rows: z.gather(1, pair[rows]).diff(dim=1).squeeze(1).neg()
        )
        return f, g


def to_hyperplane(t: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The shortest d with gap + <w, d> = 0 and t + d in the box; the farthest that the box allows where there is none.

    Each coordinate moves against the sign of gap * w by min(lambda * r_i, room_i), with r = 1 for Linf and |w| for
    L2, and lambda such that the moves close the gap. For L1 the coordinates with the largest |w| move all the way,
    one by one.
    """
    move = _moves(t.flatten(1), w.flatten(1), gap, norm)
    return move.view(t.shape)


def _moves(t: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    direction = w.sign().mul_(torch.where(gap >= 0, -1.0, 1.0)[:, None])
    room, size, gap = positive(direction).sub_(t).abs_(), w.abs(), gap.abs()
    if norm == "l1":
        return direction.mul_(_greedy(size, room, gap))
    if norm == "linf":
        return direction.mul_(torch.minimum(_level(size, room, gap)[:, None], room))
    level = _level(size * size, room / size.clamp_min(1 / FAR), gap)
    return direction.mul_(size.mul_(level[:, None]).minimum(room))


def _level(rate: Tensor, limit: Tensor, gap: Tensor) -> Tensor:
    """lambda with sum_i rate_i min(lambda, limit_i) = gap; FAR where all rows at their limits do not close the gap.

    The sum is concave and piecewise linear in lambda, so Newton's steps from 0 rise to the root and stop when no
    further coordinate reaches its limit: no sorting, and a handful of steps. A row that has stopped stays as it is.
    """
    slope, part = rate.sum(1), torch.empty_like(rate)
    level = gap / slope.clamp_min(1 / FAR)
    for step in range(MOST_STEPS):
        free = torch.gt(limit, level[:, None], out=part).mul_(rate).sum(1)
        moving = free < slope
        if (rate.device.type == "cpu" or step % 8 == 7) and not moving.any():  # a GPU has to be waited for
            break
        closed = torch.minimum(limit, level[:, None], out=part).mul_(rate).sum(1)
        higher = torch.where(free > 0, level + (gap - closed) / free, FAR).clamp_max(FAR).maximum(level)
        level, slope = torch.where(moving, higher, level), free
    return level


def _greedy(size: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    size, order = size.sort(dim=1, descending=True)
    room = room.gather(1, order)
    gain = size * room
    before = gain.cumsum(1) - gain
    move = ((gap[:, None] - before) / size.clamp_min(1 / FAR)).clamp_min(0).minimum(room) * (size > 0)
    return torch.zeros_like(move).scatter(1, order, move)
