"""Square Attack (Andriushchenko et al., 2020): random search over squares, from scores alone.

Each query repaints one square of the image and keeps it where the margin z_y - max z_i falls. Linf: every pixel stays
at x - eps or x + eps, one sign per channel and square. L2 and L1: a window takes over the energy of another one. Most
squares are a few pixels wide, so only their pixels are gathered, repainted and put back.

Nineteen of twenty queries change nothing. So where fewer rows than a batch are left, the batch is filled up with the
next queries of each row, as they are if the ones before them fail: exact, as each row goes on after its first success.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.apgd import others
from autolora.attacks.apgd_l1 import to_ball
from autolora.attacks.engine.draws import shifted, uniform
from autolora.attacks.engine.network import Network, column, fooled, put
from autolora.attacks.engine.slots import State
from autolora.threat import Threat

# The share of pixels in a square halves after these queries.
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def side(query: int, height: int, width: int, least: int, share: float = 0.8) -> int:
    """The side of the square at a query: sqrt(p h w) with p = 0.8, 0.4, 0.2, ..."""
    p = share / 2 ** sum(query > at for at in SCHEDULE)
    return min(max(round(math.sqrt(p * height * width)), least), height, width)


class SquareLinf:
    """The first query is the striped start, then `queries` squares."""

    def __init__(self, network: Network, threat: Threat, queries: int = 5000) -> None:
        self.network, self.threat, self.rounds = network, threat, queries + 1
        self.gradients, self.forwards = 0.0, 1.0
        self.sides: dict[tuple[int, int], np.ndarray] = {}

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
        n, c, _, w = x.shape
        stripes = signs(uniform(keys, 0, c * w)).view(n, c, 1, w)
        return self._fresh(x, y, keys, (x + self.threat.eps * stripes).clamp_(0, 1))

    def _fresh(self, x: Tensor, y: Tensor, keys: Tensor, first: Tensor) -> State:
        worst = torch.full((len(y),), torch.inf, device=y.device)
        return {"x": x, "y": y, "keys": keys, "best": first, "margin": worst}

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        rows, ahead = turns(age, self.network.batch)
        query, alone = age[rows] + ahead, len(rows) == len(age)
        index = torch.from_numpy(rows).to(s["best"].device)
        tried, y = self._tried(s, index, query), s["y"][index]
        logits = self.network.logits(tried)
        margin = logits.gather(1, y[:, None]).squeeze(1) - others(logits, y)
        wrong = self._wrong(margin, logits, y, tried)
        counts = torch.from_numpy((query < self.rounds) & ((ahead == 0) | (age[rows] > 0))).to(index.device)
        better = counts & ((margin < s["margin"][index]) | wrong)
        first = index
        if not alone:
            first, better = first_of_each(better, index, len(age))
            margin, wrong = margin[first], wrong[first]
            taken = np.bincount(rows[counts.cpu().numpy()], minlength=len(age))
            age += np.where(better.cpu().numpy(), ahead[first.cpu().numpy()] + 1, np.maximum(taken, 1)) - 1
        s["margin"] = torch.where(better, margin, s["margin"])
        s["best"] = put(s["best"], better, tried, first)
        return wrong & better, s["best"]

    def _wrong(self, margin: Tensor, logits: Tensor, y: Tensor, tried: Tensor) -> Tensor:
        """A margin above 0 is a right answer, and most of them are."""
        right = margin > 0
        return ~right if right.device.type == "cpu" and right.all() else fooled(logits, y, tried)

    def _tried(self, s: State, index: Tensor, query: np.ndarray) -> Tensor:
        """The point of the query in each place, made from the best of its row; the first query is the start itself."""
        starting = query == 0
        if starting.all():
            return s["best"].index_select(0, index)
        tried = self.propose(s, index, query - 1)
        return put(tried, torch.from_numpy(starting).to(tried.device), s["best"], index) if starting.any() else tried

    def propose(self, s: State, index: Tensor, age: np.ndarray) -> Tensor:
        """x - eps or x + eps inside the window."""
        tried = s["best"].index_select(0, index)
        _, c, h, w = tried.shape
        u = self.draws(s["keys"][index], age, c * w, 2 + c)
        square = Squares(u[:, 0], u[:, 1], self.sides_at(age, h, w, 1), h, w)
        new = square.cut(s["x"], index).add_(self.threat.eps * signs(u[:, 2:, None])).clamp_(0, 1)
        return square.paste(tried, new)

    def draws(self, keys: Tensor, age: np.ndarray, skip: int, count: int) -> Tensor:
        """The numbers of each row's own query: its counter moves on with its age."""
        ahead = torch.from_numpy(age).to(keys.device) * count + skip
        return uniform(shifted(keys, ahead), 0, count)

    def sides_at(self, age: np.ndarray, h: int, w: int, least: int) -> np.ndarray:
        if (h, w) not in self.sides:
            self.sides[h, w] = np.array([side(q, h, w, least) for q in range(self.rounds + 1)])
        return self.sides[h, w][np.minimum(age, self.rounds)]


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


class Squares:
    """One square in each image, at a uniformly drawn place. All are as long as the largest: smaller ones repeat their
    last row and column, and `own` is 1.0 for what is no repetition."""

    def __init__(self, u: Tensor, v: Tensor, sides: np.ndarray, h: int, w: int) -> None:
        self.sides = torch.from_numpy(sides).to(u.device)[:, None]
        self.all_steps = torch.arange(int(sides.max()), device=u.device)
        self.steps = self.all_steps.minimum(self.sides - 1)
        self.rows = (u * (h + 1 - self.sides[:, 0])).long()[:, None] + self.steps
        self.columns = (v * (w + 1 - self.sides[:, 0])).long()[:, None] + self.steps
        self.pixels = grid(self.rows * w, self.columns, torch.add)  # places in a row of h * w: [b,1,pixels]

    @cached_property
    def own(self) -> Tensor:
        inside = (self.all_steps < self.sides).float()
        return grid(inside, inside, torch.mul)

    def cut(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """The squares of these images, or of those that `index` names: [b,channels,pixels]."""
        _, c, h, w = images.shape
        index = torch.arange(len(images), device=images.device) if index is None else index
        start = index[:, None] * (c * h * w) + torch.arange(c, device=images.device) * (h * w)
        return images.take(start[:, :, None] + self.pixels)

    def paste(self, images: Tensor, squares: Tensor) -> Tensor:
        """In place."""
        b, c, h, w = images.shape
        images.view(b, c, h * w).scatter_(2, self.pixels.expand(-1, c, -1), squares)
        return images

    def outside(self, other: Squares) -> Tensor:
        """1.0 for own pixels that lie in no other's square."""
        down, across = self.rows - other.rows[:, :1], self.columns - other.columns[:, :1]
        in_row, in_column = (((d >= 0) & (d < other.sides)).float() for d in (down, across))
        return self.own * (1 - grid(in_row, in_column, torch.mul))


def grid(rows: Tensor, columns: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[b,m], [b,m] -> [b,1,m*m]"""
    return join(rows[:, :, None], columns[:, None, :]).flatten(1)[:, None]


def signs(u: Tensor) -> Tensor:
    """-1 or 1, each with probability one half."""
    return (u >= 0.5).float() * 2 - 1


class SquareL2(SquareLinf):
    """Windows of two opposite pyramids each; a proposal moves energy from one window to another."""

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

    def within(self, x: Tensor, tried: Tensor) -> Tensor:
        """A proposal spends what the ball allows, no more: only the box cuts it off."""
        return tried.clamp_(0, 1)

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
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
        delta *= column(self.threat.eps / (self.length(self.energy(delta).sum((1, 2, 3))) + 1e-12), x)
        return self._fresh(x, y, keys, self.within(x, x + delta))

    def propose(self, s: State, index: Tensor, age: np.ndarray) -> Tensor:
        x, tried = s["x"].index_select(0, index), s["best"].index_select(0, index)
        _, c, h, w = x.shape
        sides = self.sides_at(age, h, w, 3)
        u = self.draws(s["keys"][index], age, h * w * (c + 1), 5 + c)  # beyond the draws of the start
        first, second = Squares(u[:, 0], u[:, 1], sides, h, w), Squares(u[:, 2], u[:, 3], sides, h, w)
        clean, other, delta = first.cut(x), second.cut(x), first.cut(tried)
        delta -= clean
        energy = self.energy(delta) * first.own
        both = energy + self.energy(second.cut(tried) - other) * second.outside(first)
        spare = (self.budget() - self.energy(tried - x).sum((1, 2, 3), keepdim=True)[:, 0]).clamp_min(0) / c
        within = self.length(energy.sum(2, keepdim=True))
        new = self._bumps(u[:, 4], first) * signs(u[:, 5:, None]) + delta / (within + 1e-12)
        length = self.length((self.energy(new) * first.own).sum(2, keepdim=True)) + 1e-12
        new *= self.length(spare + both.sum(2, keepdim=True), c) / length
        return self.within(x, first.paste(second.paste(tried, other), new.add_(clean)))

    def _bumps(self, u: Tensor, square: Squares) -> Tensor:
        """Each square's bump, every second one turned: [b,1,pixels]."""
        turned, (rows, columns) = (u < 0.5)[:, None, None], (square.steps[:, :, None], square.steps[:, None, :])
        i, j = torch.where(turned, columns, rows), torch.where(turned, rows, columns)
        return self._stack(square.steps.shape[1], u.device)[square.sides[:, :, None], i, j].flatten(1)[:, None]

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

    def sides_at(self, age: np.ndarray, h: int, w: int, least: int) -> np.ndarray:
        sides = super().sides_at(age, h, w, least)
        return np.minimum(sides + (sides % 2 == 0), min(h, w))  # odd, where the image has room


class SquareL1(SquareL2):
    """The same with absolute values for squares, steeper pyramids, and the projection onto ball and box."""

    power = 4

    def energy(self, delta: Tensor) -> Tensor:
        return delta.abs()

    def length(self, energy: Tensor, channels: int = 1) -> Tensor:
        return energy * channels

    def budget(self) -> float:
        return self.threat.eps

    def within(self, x: Tensor, tried: Tensor) -> Tensor:
        return x + to_ball(x, tried - x, torch.full((len(x),), self.threat.eps, device=x.device))


def pyramid(rows: int, columns: int, power: int) -> Tensor:
    """Nested rectangles of weight 1 / k^power, the k-th reaching k - 1 pixels from the centre (eq. 2)."""
    bump = torch.zeros(rows, columns)
    top, left = rows // 2, columns // 2
    for k in range(max(rows // 2 + 1, columns // 2 + 1)):
        bump[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** power
    return bump
