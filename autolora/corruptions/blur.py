"""Blurs: out of focus, through frosted glass, by motion, by zooming. x: [n,3,h,w] in [0,1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autolora.corruptions.draws import Draws
from autolora.corruptions.filters import convolved, gaussian, moved, zoomed


def defocus(x: Tensor, c: tuple[float, float], _draws: Draws) -> Tensor:
    return convolved(x, disk(*c))


def disk(radius: float, smooth: float) -> Tensor:
    """A disk with softened edge; the blurring that softens it stops where the original's does."""
    reach = min(int(radius) + 2, 8) if radius <= 8 else int(radius)
    line = torch.arange(-reach, reach + 1).double()
    flat = (line[:, None] ** 2 + line**2 <= radius**2).double()
    near = torch.arange(-1, 2) if radius <= 8 else torch.arange(-2, 3)
    soft = torch.exp(-0.5 * (near.double() / smooth) ** 2)
    soft = soft / soft.sum()
    return convolved((flat / flat.sum())[None, None], soft[:, None] * soft)[0, 0]


def glass(x: Tensor, c: tuple[float, int, int], draws: Draws) -> Tensor:
    """Each pixel in turn, from the last on, takes the value of one nearby.

    The published code means to swap the two. Its arrays are views, so that the one nearby keeps its value; the
    published images are made that way, and so are ours.
    """
    sigma, reach, times = c
    bytes_ = (gaussian(x, sigma) * 255).floor() / 255
    return gaussian(_shuffled(bytes_, reach, times, draws), sigma)


def _shuffled(x: Tensor, reach: int, times: int, draws: Draws) -> Tensor:
    n, _, h, w = x.shape
    source = np.arange(h * w).reshape(1, h, w).repeat(n, 0)  # where each pixel comes from
    offsets = draws.whole(-reach, reach, times, h - 2 * reach, w - 2 * reach, 2).numpy()
    images = np.arange(n)
    for time in range(times):
        for i, row in enumerate(range(h - reach, reach, -1)):
            for j, column in enumerate(range(w - reach, reach, -1)):
                right, down = offsets[:, time, i, j].T
                source[:, row, column] = source[images, row + down, column + right]
    index = torch.from_numpy(source).view(n, 1, -1).expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, index).view(x.shape)


def motion(x: Tensor, c: tuple[int, float], draws: Draws) -> Tensor:
    return moved(x, *c, draws.uniform(-45, 45))


def zoom(x: Tensor, c: tuple[float, float], _draws: Draws) -> Tensor:
    """The mean of the image and of zooms from 1 to c."""
    factors = np.arange(1, *c).tolist()
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)
