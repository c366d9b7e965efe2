"""Square Attack (Andriushchenko et al., 2020): random search over squares, from scores alone.

Each query repaints one square of the image and keeps it where the margin z_y - max z_i falls. Linf: every pixel stays at
x - eps or x + eps, one sign per channel and square. L2: a window takes over the energy of another one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from autolora.attacks.apgd import others
from autolora.attacks.draws import shifted, uniform
from autolora.attacks.network import Network, column
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

    def __init__(self, network: Network, threat: Threat, queries: int = 5000) -> None:
        self.network, self.threat, self.rounds = network, threat, queries + 1
        self.sides: dict[tuple[int, int], np.ndarray] = {}

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, ranks: np.ndarray) -> State:
        n, c, _, w = x.shape
        low, high = ((x + sign * self.threat.eps).clamp(*self.threat.bounds) for sign in (-1, 1))
        stripes = uniform(keys, 0, c * w).view(n, c, 1, w) < 0.5
        return {
            "x": x,
            "y": y,
            "low": low,
            "high": high,
            "keys": keys,
            "tried": torch.where(stripes, low, high),
            "best": x.clone(),
            "margin": torch.full((n,), torch.inf, device=x.device),
        }

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        tried = s["tried"]
        logits = self.network.logits(tried)
        margin = logits.gather(1, s["y"][:, None]).squeeze(1) - others(logits, s["y"])
        better = margin < s["margin"]
        s["margin"] = torch.where(better, margin, s["margin"])
        s["best"] = torch.where(column(better, tried), tried, s["best"])
        s["tried"] = self._propose(s, age)
        return logits.argmax(1) != s["y"], tried

    def _propose(self, s: State, age: np.ndarray) -> Tensor:
        _, c, h, w = s["x"].shape
        sides = self._sides(age, h, w, 1, s["x"].device)
        u = self._draw(s, age, c * w, 2 + c)
        inside = window(u[:, 0], u[:, 1], sides, h, w)
        painted = torch.where(u[:, 2:, None, None] < 0.5, s["low"], s["high"])
        return torch.where(inside, painted, s["best"])

    def _draw(self, s: State, age: np.ndarray, skip: int, count: int) -> Tensor:
        """The numbers of each row's own query: its counter moves on with its age."""
        ahead = torch.from_numpy(age).to(s["keys"].device) * count + skip
        return uniform(shifted(s["keys"], ahead), 0, count)

    def _sides(self, age: np.ndarray, h: int, w: int, least: int, device: torch.device) -> Tensor:
        if (h, w) not in self.sides:
            self.sides[h, w] = np.array([side(q, h, w, least) for q in range(self.rounds + 1)])
        return torch.from_numpy(self.sides[h, w][np.minimum(age, self.rounds)]).to(device)


def window(u: Tensor, v: Tensor, sides: Tensor, h: int, w: int) -> Tensor:
    """Squares at uniformly drawn places: bool [b,1,h,w]."""
    top, left = (u * (h - sides + 1)).long(), (v * (w - sides + 1)).long()
    rows = torch.arange(h, device=u.device) - top[:, None]
    columns = torch.arange(w, device=u.device) - left[:, None]
    inside_rows, inside_columns = ((d >= 0) & (d < sides[:, None]) for d in (rows, columns))
    return (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]


class SquareL2(SquareLinf):
    """Windows of two opposite pyramids each; a proposal moves energy from one window to another."""

    def __init__(self, network: Network, threat: Threat, queries: int = 5000) -> None:
        super().__init__(network, threat, queries)
        self.bumps: dict[int, Tensor] = {}

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, ranks: np.ndarray) -> State:
        n, c, h, w = x.shape
        s = max(h // 5, 1)
        offset, down, across = (h - 5 * s) // 2 if h >= 5 else 0, h // s, w // s
        u = uniform(keys, 0, down * across * (c + 1)).view(n, down, across, c + 1)
        delta = torch.zeros_like(x)
        for i in range(down):
            for j in range(across):
                top, left = offset + i * s, offset + j * s
                tile = self._bump(s, x.device)
                tile = torch.where(u[:, i, j, :1, None, None] < 0.5, tile, tile.T)
                tile = tile * torch.where(u[:, i, j, 1:, None, None] < 0.5, -1.0, 1.0)
                room = delta[:, :, top : top + s, left : left + s]
                room += tile[:, :, : room.shape[2], : room.shape[3]]
        return {
            "x": x,
            "y": y,
            "keys": keys,
            "tried": self._inside(x, delta),
            "best": x.clone(),
            "margin": torch.full((n,), torch.inf, device=x.device),
        }

    def _inside(self, x: Tensor, delta: Tensor) -> Tensor:
        length = column(delta.flatten(1).norm(dim=1), x) + 1e-12
        return (x + delta / length * self.threat.eps).clamp(*self.threat.bounds)

    def _propose(self, s: State, age: np.ndarray) -> Tensor:
        x = s["x"]
        _, c, h, w = x.shape
        sides = self._sides(age, h, w, 3, x.device)
        u = self._draw(s, age, h * w * (c + 1), 5 + c)  # beyond the draws of the start
        first, second = window(u[:, 0], u[:, 1], sides, h, w), window(u[:, 2], u[:, 3], sides, h, w)
        delta = s["best"] - x
        energy = delta.square()
        within = (energy * first).sum((2, 3), keepdim=True).sqrt()
        both = (energy * (first | second)).sum((2, 3), keepdim=True)
        spare = (self.threat.eps**2 - energy.sum((1, 2, 3), keepdim=True)).clamp_min(0) / c
        bump = self._placed(u[:, 0], u[:, 1], u[:, 4], sides, h, w)
        sign = torch.where(u[:, 5:, None, None] < 0.5, -1.0, 1.0)
        new = first * (bump * sign + delta / (within + 1e-12))
        new = new / (new.square().sum((2, 3), keepdim=True).sqrt() + 1e-12) * (spare + both).sqrt()
        return self._inside(x, torch.where(first, new, delta.masked_fill(second, 0)))

    def _placed(self, u: Tensor, v: Tensor, turn: Tensor, sides: Tensor, h: int, w: int) -> Tensor:
        """Each row's bump at its window: [b,1,h,w]."""
        stack = self._stack(h, w, u.device)  # [sides, h, w]
        top, left = (u * (h - sides + 1)).long(), (v * (w - sides + 1)).long()
        rows = (torch.arange(h, device=u.device) - top[:, None]).clamp(0, h - 1)[:, :, None]
        columns = (torch.arange(w, device=u.device) - left[:, None]).clamp(0, w - 1)[:, None, :]
        turned = (turn < 0.5)[:, None, None]
        last = min(h, w) - 1
        i = torch.where(turned, columns.expand(-1, h, w), rows.expand(-1, h, w)).clamp_max(last)
        j = torch.where(turned, rows.expand(-1, h, w), columns.expand(-1, h, w)).clamp_max(last)
        return stack[sides[:, None, None], i, j][:, None]

    def _stack(self, h: int, w: int, device: torch.device) -> Tensor:
        size = min(h, w)
        if -size not in self.bumps:
            stack = torch.zeros(size + 1, size, size)
            for s in range(3, size + 1):
                stack[s, :s, :s] = self._bump(s, torch.device("cpu"))
            self.bumps[-size] = stack.to(device)
        return self.bumps[-size]

    def _bump(self, s: int, device: torch.device) -> Tensor:
        """Two opposite pyramids side by side, of length 1: [s,s]."""
        if s not in self.bumps:
            halves = [pyramid(s // 2, s), -pyramid(s - s // 2, s)]
            bump = torch.cat([half for half in halves if half.numel()])
            self.bumps[s] = (bump / bump.norm()).to(device)
        return self.bumps[s]

    def _sides(self, age: np.ndarray, h: int, w: int, least: int, device: torch.device) -> Tensor:
        sides = super()._sides(age, h, w, least, device)
        return (sides + (sides % 2 == 0)).clamp_max(min(h, w))  # odd, where the image has room


def pyramid(rows: int, columns: int, power: int = 2) -> Tensor:
    """Nested rectangles of weight 1 / k^2, the k-th reaching k - 1 pixels from the centre, of length 1 (eq. 2)."""
    bump = torch.zeros(rows, columns)
    top, left = rows // 2, columns // 2
    for k in range(max(rows // 2 + 1, columns // 2 + 1)):
        bump[max(top - k, 0) : max(top + k + 1, 0), max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** power
    return bump / bump.norm().clamp_min(1e-12)
