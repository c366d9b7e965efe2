"""The attacks as their papers tell them: one image at a time, loops and lists, nothing shared with the product."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def apgd(net, x: Tensor, y: int, start: Tensor, norm: str, eps: float, steps: int, loss: str, target: int = 0):
    """Algorithm 1 of Auto-PGD for one image [c,h,w]. Returns the best loss, and whether any point was misclassified."""

    def f(point: Tensor) -> tuple[float, Tensor, bool]:
        point = point.clone().requires_grad_(True)
        z = net(point[None])[0]
        order = z.sort(descending=True).values
        if loss == "ce":
            value = F.cross_entropy(z[None], torch.tensor([y]))
        elif loss == "dlr":
            rival = max(z[k] for k in range(len(z)) if k != y)
            value = -(z[y] - rival) / (order[0] - order[2] + 1e-12)
        else:
            value = -(z[y] - z[target]) / (order[0] - 0.5 * (order[2] + order[3]) + 1e-12)
        (g,) = torch.autograd.grad(value, point)
        return value.item(), g, int(z.argmax()) != y

    def p(point: Tensor) -> Tensor:
        d = point - x
        d = d.clamp(-eps, eps) if norm == "linf" else d * min(1.0, eps / max(d.norm().item(), 1e-12))
        return (x + d).clamp(0, 1)

    def towards(g: Tensor) -> Tensor:
        return g.sign() if norm == "linf" else g / g.norm().clamp_min(1e-12)

    checkpoints, shares = [], [0.0, 0.22]
    while math.ceil(100 * shares[-1]) <= 100:
        checkpoints.append(round(shares[-1] * steps))
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    points, losses = [start], []
    value, g, wrong = f(start)
    losses.append(value)
    best, best_point, best_g, ever = value, start, g, wrong
    eta, previous, current = 2 * eps, start, start
    last, etas, bests = 0, [eta], [best]
    for k in range(steps):
        z = p(current + eta * towards(g))
        momentum = 1.0 if k == 0 else 0.75
        new = p(current + momentum * (z - current) + (1 - momentum) * (current - previous))
        previous, current = current, new
        points.append(new)
        value, g, wrong = f(new)
        losses.append(value)
        ever = ever or wrong
        if value > best:
            best, best_point, best_g = value, new, g
        if k + 1 in checkpoints:
            rises = sum(losses[i + 1] > losses[i] for i in range(last, k + 1))
            few = rises < 0.75 * (k + 1 - last)
            stale = len(etas) > 1 and etas[-1] == etas[-2] and bests[-1] == best
            stale = stale if len(etas) > 1 else False
            if few or stale:
                eta, current, g = eta / 2, best_point, best_g
            etas.append(eta)
            bests.append(best)
            last = k + 1
    return best, ever


def apgd_l1(net, x: Tensor, y: int, start: Tensor, eps: float, steps: int):
    """Auto-PGD for L1 on one image, as the authors' code runs it: three stages, each a search of its own from the best
    point of the one before. Returns the best loss of each stage, and whether a point of the last was misclassified."""

    def f(point: Tensor) -> tuple[float, Tensor, bool]:
        point = point.clone().requires_grad_(True)
        z = net(point[None])[0]
        value = F.cross_entropy(z[None], torch.tensor([y]))
        (g,) = torch.autograd.grad(value, point)
        return value.item(), g, int(z.argmax()) != y

    def p(point: Tensor, radius: float) -> Tensor:
        """Ours stop a millionth short of the surface."""
        offset = torch.from_numpy(into_l1_ball(x.flatten().numpy(), (point - x).flatten().numpy(), radius))
        return x + offset.view_as(x) * (1 - 1e-6 * (offset.abs().sum().item() > radius * (1 - 1e-9)))

    def moved(point: Tensor) -> int:
        return int((point != x).sum())

    best_point, bests, ever = start, [], False
    for times, share in ((3, 0.3), (2, 0.3), (1, 0.4)):
        radius = eta = times * eps
        current = p(best_point, radius)
        best, g, wrong = f(current)
        best_point, best_g, count, ever = current, g, moved(current), wrong and times == 1
        for _ in range(round(share * steps)):
            skip = int((np.float32(1) - np.float32(count) / x.numel() / np.float32(1.5)) * x.numel())
            least = g.abs().flatten().sort().values[min(max(skip, 0), x.numel() - 1)]
            sign = g.sign() * (g.abs() >= least)
            current = p(current + eta * sign / sign.abs().sum(), radius)
            value, g, wrong = f(current)
            ever = ever or (wrong and times == 1)
            if value > best:
                best, best_point, best_g = value, current, g
            before, count = count, moved(best_point)
            if count / before < 0.95:
                eta, current, g = radius, best_point, best_g
            else:
                eta = max(eta / 1.5, radius / 10)
        bests.append(best)
    return bests, ever


def nearest(t: np.ndarray, w: np.ndarray, gap: float, norm: str) -> float:
    """The length of the shortest d with gap + w d = 0 and t + d in [0,1]^n, by bisection; inf if there is none."""
    sign = -1.0 if gap >= 0 else 1.0
    room = np.where(sign * w > 0, 1 - t, t)
    gap, size = abs(gap), np.abs(w)
    if size @ room < gap:
        return math.inf
    if norm == "l1":
        left, length = gap, 0.0
        for i in np.argsort(-size):
            step = min(room[i], left / size[i]) if size[i] > 0 else 0.0
            length, left = length + step, left - step * size[i]
        return length
    rate = np.ones_like(size) if norm == "linf" else size
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if size @ np.minimum(middle * rate, room) >= gap else (middle, high)
    moves = np.minimum(high * rate, room) * (size > 0)
    return float(moves.max() if norm == "linf" else np.linalg.norm(moves))


def splitmix(key: int, count: int) -> list[int]:
    """SplitMix64 in plain integers."""
    mask, out = (1 << 64) - 1, []
    state = key & mask
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def into_l1_ball(x: np.ndarray, offset: np.ndarray, eps: float) -> np.ndarray:
    """The nearest offset with |d|_1 <= eps and x + d in [0,1], by bisection in float64."""
    size, room = np.abs(offset), np.where(offset > 0, 1 - x, x)

    def move(level: float) -> np.ndarray:
        return np.minimum(np.maximum(size - level, 0), room)

    if move(0.0).sum() <= eps:
        return np.sign(offset) * move(0.0)
    low, high = 0.0, float(size.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if move(middle).sum() > eps else (low, middle)
    return np.sign(offset) * move(high)


def square_tiles(x: Tensor, u: list[float], norm: str, eps: float) -> Tensor:
    """The start of Square for one image: stripes for Linf, a tiling of bumps for L2 and L1."""
    c, h, w = x.shape
    delta, draw = torch.zeros(c, h, w), iter(u)
    if norm == "linf":
        for channel in range(c):
            for column in range(w):
                delta[channel, :, column] = eps if next(draw) >= 0.5 else -eps
        return (x + delta).clamp(0, 1)
    side = max(h // 5, 1)
    first = (h - 5 * side) // 2
    for down in range(h // side):
        for across in range(w // side):
            turned, bump = next(draw) < 0.5, two_pyramids(side, norm)
            for channel in range(c):
                sign = 1.0 if next(draw) >= 0.5 else -1.0
                for i in range(side):
                    for j in range(side):
                        row, column = first + down * side + i, first + across * side + j
                        if row < h and column < w:
                            delta[channel, row, column] += sign * (bump[i, j] if turned else bump[j, i])
    length = delta.norm() if norm == "l2" else delta.abs().sum()
    return inside(x, delta / (length + 1e-12) * eps, norm, eps)


def two_pyramids(side: int, norm: str) -> Tensor:
    """The upper half up, the lower half down, each of length 1, and so the whole."""
    power, length = (2, torch.linalg.vector_norm) if norm == "l2" else (4, lambda t: t.abs().sum())
    bump = torch.zeros(side, side)
    for rows, sign in ((range(side // 2), 1.0), (range(side // 2, side), -1.0)):
        n, half = len(rows), torch.zeros(len(rows), side)
        for i in range(n):
            for j in range(side):
                distance = max(abs(i - n // 2), abs(j - side // 2))
                for k in range(distance, max(n // 2 + 1, side // 2 + 1)):
                    half[i, j] += 1 / (k + 1) ** power
        if n:
            bump[rows.start : rows.stop] = sign * half / length(half)
    return bump / length(bump)


def inside(x: Tensor, delta: Tensor, norm: str, eps: float) -> Tensor:
    """Ball and box at once for L1; for L2 the length is right already."""
    if norm == "l1":
        shape, flat = delta.shape, (t.flatten().double().numpy() for t in (x, delta))
        delta = torch.from_numpy(into_l1_ball(*flat, eps)).float().view(shape)
    return (x + delta).clamp(0, 1)


def square_window(x: Tensor, best: Tensor, u: list[float], side: int, norm: str, eps: float) -> Tensor:
    """One proposal of Square for L2 (Algorithm 3 and appendix) or L1: windows of one image [c,h,w] cut and put back."""
    c, h, w = x.shape
    top, left, top2, left2 = (int(v * (n - side + 1)) for v, n in zip(u[:4], (h, w, h, w)))
    delta, bump = best - x, two_pyramids(side, norm)
    bump = bump.T if u[4] < 0.5 else bump
    new, cut = torch.zeros(c, side, side), delta.clone()
    for channel in range(c):
        here = delta[channel, top : top + side, left : left + side]
        union = torch.zeros(h, w, dtype=torch.bool)
        union[top : top + side, left : left + side] = True
        union[top2 : top2 + side, left2 : left2 + side] = True
        raw = bump * (-1.0 if u[5 + channel] < 0.5 else 1.0)
        if norm == "l2":
            spare = max(eps**2 - float((delta**2).sum()), 0.0) / c
            length = math.sqrt(spare + float((delta[channel][union] ** 2).sum()))
            raw = raw + here / (float(here.norm()) + 1e-12)
            new[channel] = raw / (raw.norm() + 1e-12) * length
        else:
            spare = max(eps - float(delta.abs().sum()), 0.0) / c
            length = c * (spare + float(delta[channel][union].abs().sum()))
            raw = raw + here / (float(here.abs().sum()) + 1e-12)
            new[channel] = raw / (raw.abs().sum() + 1e-12) * length
        cut[channel, top2 : top2 + side, left2 : left2 + side] = 0
    cut[:, top : top + side, left : left + side] = new
    if norm == "l2":
        cut = cut / (cut.norm() + 1e-12) * eps
    return inside(x, cut, norm, eps)
