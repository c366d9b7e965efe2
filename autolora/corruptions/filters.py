"""What several corruptions are made of: blurs, a zoom into the middle, motion, a fractal. Images are [n,c,h,w]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.corruptions.draws import Draws


def gaussian(x: Tensor, sigma: float, border: str = "nearest", truncate: float = 4.0) -> Tensor:
    """Along both sides; `border` says what lies beyond the image: its last pixel, or its mirror image ("reflect")."""
    if sigma <= 0:
        return x
    down, across = (_blurring(size, sigma, border, truncate).to(x) for size in x.shape[-2:])
    return down @ x @ across.T


def _blurring(size: int, sigma: float, border: str, truncate: float) -> Tensor:
    """A row for each pixel: how much it takes of which. The mirror image includes the last pixel."""
    reach = int(truncate * sigma + 0.5)
    steps = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (steps.double() / sigma) ** 2)
    source = torch.arange(size)[:, None] + steps
    if border == "nearest":
        source = source.clamp(0, size - 1)
    else:
        source = source % (2 * size)
        source = torch.minimum(source, 2 * size - 1 - source)
    rows = torch.zeros(size, size, dtype=torch.float64)
    return rows.scatter_add_(1, source, (weights / weights.sum()).expand(size, -1))


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """With an odd symmetric kernel [k,k], over a mirror image without the last pixel."""
    reach = len(kernel) // 2
    flat = F.pad(x, [reach] * 4, mode="reflect").flatten(0, 1)[:, None]
    return F.conv2d(flat, kernel[None, None].to(x)).view(x.shape)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """Into the middle, bilinear, corners on corners; what is left over at the edges is cut off."""
    h, w = x.shape[-2:]
    rows, columns = math.ceil(h / factor), math.ceil(w / factor)
    top, left = (h - rows) // 2, (w - columns) // 2
    middle = x[..., top : top + rows, left : left + columns]
    size = (round(rows * factor), round(columns * factor))
    large = F.interpolate(middle, size=size, mode="bilinear", align_corners=True)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    return large[..., top : top + h, left : left + w]


def moved(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Each image blurred along its own direction: the mean of shifted copies, weighted by half a Gaussian."""
    width = 2 * radius + 1
    weights = torch.exp(-0.5 * (torch.arange(width).double() / sigma) ** 2)
    weights = weights / weights.sum()
    return torch.stack([_moved(image, weights.tolist(), angle) for image, angle in zip(x, degrees.tolist())])


def _moved(image: Tensor, weights: list[float], degrees: float) -> Tensor:
    h, w = image.shape[-2:]
    rise, run = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    blurred = torch.zeros_like(image)
    for i, weight in enumerate(weights):
        down, right = -math.ceil(i * rise - 0.5), -math.ceil(i * run - 0.5)
        if abs(down) >= h or abs(right) >= w:
            break  # beyond the image
        rows = (torch.arange(h) - down).clamp(0, h - 1)
        columns = (torch.arange(w) - right).clamp(0, w - 1)
        blurred += weight * image[:, rows][:, :, columns]
    return blurred


def plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """Diamond-square fractals from 0 to 1: [n,side,side], the smallest power of two that holds the side.

    Each new point is the mean of four neighbours plus a number whose range falls by `decay` from scale to scale.
    """
    size = 2 ** math.ceil(math.log2(side))
    field, step, range_ = torch.zeros(len(draws.generators), size, size, dtype=torch.float64), size, 100.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = _wobbled(pairs + pairs.roll(-1, 2), range_, draws)
        middles = field[:, half::step, half::step].clone()
        corners = corners.clone()
        field[:, ::step, half::step] = _wobbled(
            middles + middles.roll(1, 1) + corners + corners.roll(-1, 2), range_, draws
        )
        field[:, half::step, ::step] = _wobbled(
            middles + middles.roll(1, 2) + corners + corners.roll(-1, 1), range_, draws
        )
        step, range_ = half, range_ / decay
    low, high = (field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True))
    return (field - low) / (high - low)


def _wobbled(total: Tensor, range_: float, draws: Draws) -> Tensor:
    return total / 4 + range_ * draws.uniform(-range_, range_, *total.shape[1:])
