"""Square Attack (Andriushchenko et al., 2020): random search over squares, from scores alone.

Each query repaints one square of the image and keeps it where the margin z_y - max z_i falls. Linf: every pixel stays
at x - eps or x + eps, one sign per channel and square. L2 and L1: a window takes over the energy of another one.

Nineteen of twenty queries change nothing. So where fewer rows than a batch are left, the batch is filled up with the
next queries of each row, as they are if the ones before them fail: exact, as each row goes on after its first success.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.apgd import others
from autolora.attacks.apgd_l1 import to_ball
from autolora.attacks.draws import shifted, uniform
from autolora.attacks.network import Network, column, put
from autolora.attacks.slots import State
from autolora.threat import Threat

SCHEDULE = (
    10,
    50,
    200,
    500,
    1000,
    2000,
    4000,
    6000,
    8000,
)  # the share of pixels in a square halves after these queries


def side(query: int, height: int, width: int, least: int, share: float = 0.8) -> int:
    """The side of the square at a query: sqrt(p h w) with p = 0.8, 0.4, 0.2, ..."""
    p = share / 2 ** sum(query > at for at in SCHEDULE)
    return min(max(round(math.sqrt(p * height * width)), least), height, width)


class SquareLinf:
    """The first query is the striped start, then `queries` squares."""

    reads: tuple[str, ...] = ("y", "keys", "best", "margin", "low", "high")

    def __init__(self, network: Network, threat: Threat, queries: int = 5000) -> None:
        self.network, self.threat, self.rounds = network, threat, queries + 1
        self.sides: dict[tuple[int, int], np.ndarray] = {}

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, ranks: np.ndarray) -> State:
        n, c, _, w = x.shape
        stripes = signs(uniform(keys, 0, c * w)).view(n, c, 1, w)
        low, high = (self._painted(x, torch.tensor(sign, device=x.device)) for sign in (-1.0, 1.0))
        return self._fresh(y, keys, self._painted(x, stripes)) | {"low": low, "high": high}

    def _fresh(self, y: Tensor, keys: Tensor, first: Tensor) -> State:
        worst = torch.full((len(y),), torch.inf, device=y.device)
        return {"y": y, "keys": keys, "best": first, "margin": worst}

    def _painted(self, x: Tensor, sign: Tensor) -> Tensor:
        return (x + self.threat.eps * sign).clamp_(*self.threat.bounds)

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        rows, ahead = turns(age, self.network.batch)
        query, alone = age[rows] + ahead, len(rows) == len(age)
        index = torch.from_numpy(rows).to(s["best"].device)
        part = s if alone else {name: s[name][index] for name in self.reads}
        tried = self._tried(part, query)
        logits = self.network.logits(tried)
        margin = logits.gather(1, part["y"][:, None]).squeeze(1) - others(logits, part["y"])
        counts = torch.from_numpy((query < self.rounds) & ((ahead == 0) | (age[rows] > 0))).to(index.device)
        wrong = logits.argmax(1) != part["y"]
        better = counts & ((margin < part["margin"]) | wrong)
        if not alone:
            first, better = first_of_each(better, index, len(age))
            margin, wrong, tried = margin[first], wrong[first] & better, tried[first]
            taken = np.bincount(rows[counts.cpu().numpy()], minlength=len(age))
            age += np.where(better.cpu().numpy(), ahead[first.cpu().numpy()] + 1, np.maximum(taken, 1)) - 1
        s["margin"] = torch.where(better, margin, s["margin"])
        s["best"] = put(s["best"], better, tried)
        return wrong, tried

    def _tried(self, s: State, query: np.ndarray) -> Tensor:
        """The point of each row's query; the first query is the start itself."""
        tried = self._propose(s, query - 1)
        return put(tried, torch.from_numpy(query == 0).to(tried.device), s["best"]) if (query == 0).any() else tried

    def _propose(self, s: State, age: np.ndarray) -> Tensor:
        """A whole pixel range up or down inside the window, cut off at x - eps and x + eps."""
        best = s["best"]
        _, c, h, w = best.shape
        u = self._draw(s, age, c * w, 2 + c)
        inside = window(u[:, 0], u[:, 1], self._sides(age, h, w, 1, best.device), h, w)
        return torch.addcmul(best, inside, signs(u[:, 2:])[:, :, None, None]).clamp_(s["low"], s["high"])

    def _draw(self, s: State, age: np.ndarray, skip: int, count: int) -> Tensor:
        """The numbers of each row's own query: its counter moves on with its age."""
        ahead = torch.from_numpy(age).to(s["keys"].device) * count + skip
        return uniform(shifted(s["keys"], ahead), 0, count)

    def _sides(self, age: np.ndarray, h: int, w: int, least: int, device: torch.device) -> Tensor:
        if (h, w) not in self.sides:
            self.sides[h, w] = np.array([side(q, h, w, least) for q in range(self.rounds + 1)])
        return torch.from_numpy(self.sides[h, w][np.minimum(age, self.rounds)]).to(device)


def turns(age: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Which row each place of whole batches belongs to, and how far it looks ahead; the youngest rows look farthest."""
    size = -(-len(age) // batch) * batch
    place = np.arange(size)
    order = place if size == len(age) else np.argsort(age, kind="stable")
    return order[place % len(age)], place // len(age)


def first_of_each(found: Tensor, row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The first place of each row at which something was found, and whether there is one."""
    last = len(found) - 1
    place = torch.where(found, torch.arange(last + 1, device=row.device), last + 1)
    first = torch.full((rows,), last + 1, device=row.device).scatter_reduce(0, row, place, "amin")
    return first.clamp_max(last), first <= last


def window(u: Tensor, v: Tensor, sides: Tensor, h: int, w: int) -> Tensor:
    """Squares at uniformly drawn places, 1.0 inside and 0.0 outside: [b,1,h,w]."""
    top, left = (u * (h - sides + 1)).long(), (v * (w - sides + 1)).long()
    rows = torch.arange(h, device=u.device) - top[:, None]
    columns = torch.arange(w, device=u.device) - left[:, None]
    inside_rows, inside_columns = (((d >= 0) & (d < sides[:, None])).float() for d in (rows, columns))
    return (inside_rows[:, :, None] * inside_columns[:, None, :])[:, None]


def signs(u: Tensor) -> Tensor:
    """-1 or 1, each with probability one half."""
    return (u >= 0.5).float() * 2 - 1


class SquareL2(SquareLinf):
    """Windows of two opposite pyramids each; a proposal moves energy from one window to another."""

    reads = ("y", "keys", "best", "margin", "x")
    power = 2  # the pyramids' weights fall with this power of the distance from the centre

    def __init__(self, network: Network, threat: Threat, queries: int = 5000) -> None:
        super().__init__(network, threat, queries)
        self.bumps: dict[int, Tensor] = {}
        self.stacks: dict[int, Tensor] = {}

    def energy(self, delta: Tensor) -> Tensor:
        return delta.square()

    def length(self, energy: Tensor, channels: int = 1) -> Tensor:
        """The length of a perturbation of this energy, spread over so many channels of which each gets its share."""
        return energy.sqrt()

    def budget(self) -> float:
        return self.threat.eps**2

    def inside(self, x: Tensor, delta: Tensor) -> Tensor:
        """On the surface of the ball, then cut off by the box."""
        length = column(delta.flatten(1).norm(dim=1), x) + 1e-12
        return (x + delta * (self.threat.eps / length)).clamp_(*self.threat.bounds)

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, ranks: np.ndarray) -> State:
        n, c, h, w = x.shape
        s = max(h // 5, 1)
        offset, down, across = max((h - 5 * s) // 2, 0), h // s, w // s
        u = uniform(keys, 0, down * across * (c + 1)).view(n, down, across, c + 1)
        bump, delta = self._bump(s).to(x.device), torch.zeros_like(x)
        for i in range(down):
            for j in range(across):
                top, left = offset + i * s, offset + j * s
                tile = torch.where(u[:, i, j, :1, None, None] < 0.5, bump, bump.T) * signs(u[:, i, j, 1:, None, None])
                room = delta[:, :, top : top + s, left : left + s]
                room += tile[:, :, : room.shape[2], : room.shape[3]]
        return self._fresh(y, keys, self.inside(x, delta)) | {"x": x}

    def _propose(self, s: State, age: np.ndarray) -> Tensor:
        x = s["x"]
        _, c, h, w = x.shape
        sides = self._sides(age, h, w, 3, x.device)
        u = self._draw(s, age, h * w * (c + 1), 5 + c)  # beyond the draws of the start
        first, second = window(u[:, 0], u[:, 1], sides, h, w), window(u[:, 2], u[:, 3], sides, h, w)
        delta = s["best"] - x
        energy = self.energy(delta)
        spare = (self.budget() - energy.sum((1, 2, 3), keepdim=True)).clamp_min(0) / c
        both = (energy * torch.maximum(first, second)).sum((2, 3), keepdim=True)
        within = self.length(energy.mul_(first).sum((2, 3), keepdim=True))
        new = self._placed(u, sides, h, w) * first * signs(u[:, 5:, None, None]) + delta * first / (within + 1e-12)
        length = self.length(self.energy(new).sum((2, 3), keepdim=True)) + 1e-12
        new *= self.length(spare + both, c) / length
        return self.inside(x, new.add_(delta.mul_((1 - first) * (1 - second))))

    def _placed(self, u: Tensor, sides: Tensor, h: int, w: int) -> Tensor:
        """Each row's bump at its first window, every second one turned: [b,1,h,w]."""
        top, left = (u[:, 0] * (h - sides + 1)).long(), (u[:, 1] * (w - sides + 1)).long()
        last = min(h, w) - 1
        rows = (torch.arange(h, device=u.device) - top[:, None]).clamp(0, last)[:, :, None].expand(-1, h, w)
        columns = (torch.arange(w, device=u.device) - left[:, None]).clamp(0, last)[:, None, :].expand(-1, h, w)
        turned = (u[:, 4] < 0.5)[:, None, None]
        i, j = torch.where(turned, columns, rows), torch.where(turned, rows, columns)
        return self._stack(last + 1, u.device)[sides[:, None, None], i, j][:, None]

    def _stack(self, size: int, device: torch.device) -> Tensor:
        """The bumps of every side up to `size`: [size + 1, size, size]."""
        if size not in self.stacks:
            stack = torch.zeros(size + 1, size, size)
            for s in range(1, size + 1):
                stack[s, :s, :s] = self._bump(s)
            self.stacks[size] = stack.to(device)
        return self.stacks[size]

    def _bump(self, s: int) -> Tensor:
        """Two opposite pyramids side by side, of length 1: [s,s]."""
        if s not in self.bumps:
            halves = [self._unit(pyramid(s // 2, s, self.power)), -self._unit(pyramid(s - s // 2, s, self.power))]
            self.bumps[s] = self._unit(torch.cat([half for half in halves if half.numel()]))
        return self.bumps[s]

    def _unit(self, bump: Tensor) -> Tensor:
        return bump / self.length(self.energy(bump).sum()).clamp_min(1e-12)

    def _sides(self, age: np.ndarray, h: int, w: int, least: int, device: torch.device) -> Tensor:
        sides = super()._sides(age, h, w, least, device)
        return (sides + (sides % 2 == 0)).clamp_max(min(h, w))  # odd, where the image has room


class SquareL1(SquareL2):
    """The same with absolute values for squares, steeper pyramids, and the projection onto ball and box."""

    power = 4

    def energy(self, delta: Tensor) -> Tensor:
        return delta.abs()

    def length(self, energy: Tensor, channels: int = 1) -> Tensor:
        return energy * channels

    def budget(self) -> float:
        return self.threat.eps

    def inside(self, x: Tensor, delta: Tensor) -> Tensor:
        return x + to_ball(x, delta, torch.full((len(x),), self.threat.eps, device=x.device))


def pyramid(rows: int, columns: int, power: int) -> Tensor:
    """Nested rectangles of weight 1 / k^power, the k-th reaching k - 1 pixels from the centre (eq. 2)."""
    bump = torch.zeros(rows, columns)
    top, left = rows // 2, columns // 2
    for k in range(max(rows // 2 + 1, columns // 2 + 1)):
        bump[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** power
    return bump
