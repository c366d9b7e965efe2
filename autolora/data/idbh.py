"""IDBH (Li & Spratling, ICLR 2023): harder and more varied images for adversarial training that would overfit.

A flip; a shift of a crop; one of eight changes of colour or shape; and for every second image a part of it erased.
All numbers of an image stand in one row of uniform draws, so that a row decides all.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt

import torch
import torchvision.transforms.v2.functional as F
from torch import Tensor

DRAWS = 16
FARTHEST = 10 / 32  # of a side: what a crop may take away, both sides together
ERASED = 0.5  # of the images
AREA, ASPECT = (0.02, 0.33), (0.3, 3.3)  # of what is erased, as in torchvision's RandomErasing


def draw(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, DRAWS, generator=generator)


def varied(images: Tensor, draws: Tensor) -> Tensor:
    """[n,3,h,w], bytes or floats in [0,1]."""
    return torch.stack([_one(image, row) for image, row in zip(images, draws.tolist())])


def _one(image: Tensor, row: list[float]) -> Tensor:
    image = image.flip(2) if row[0] < 0.5 else image
    image = crop_shift(image, row[1:7])
    image = CHANGES[int(row[7] * len(CHANGES))](image, row[8], row[9])
    return erased(image, row[11:15]) if row[10] < ERASED else image


def crop_shift(image: Tensor, row: list[float]) -> Tensor:
    """Take s_x columns and s_y rows away at random places, and put the rest at a random place on black."""
    h, w = image.shape[1:]
    most = int(FARTHEST * min(h, w))
    total = int(row[0] * (most + 1))
    across = int(row[1] * (total + 1))
    down = total - across
    left, top, x, y = (int(u * (k + 1)) for u, k in zip(row[2:6], (across, down, across, down)))
    found = torch.zeros_like(image)
    found[:, y : y + h - down, x : x + w - across] = image[:, top : top + h - down, left : left + w - across]
    return found


def erased(image: Tensor, row: list[float]) -> Tensor:
    h, w = image.shape[1:]
    area = (AREA[0] + row[0] * (AREA[1] - AREA[0])) * h * w
    aspect = exp(log(ASPECT[0]) + row[1] * log(ASPECT[1] / ASPECT[0]))
    height, width = min(h, round(sqrt(area * aspect))), min(w, round(sqrt(area / aspect)))
    top, left = int(row[2] * (h - height + 1)), int(row[3] * (w - width + 1))
    found = image.clone()
    found[:, top : top + height, left : left + width] = 0
    return found


def _by(low: float, high: float, change: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor, float, float], Tensor]:
    return lambda image, strength, coin: change(image, low + strength * (high - low))


def _sheared(image: Tensor, strength: float, coin: float) -> Tensor:
    """By 0.05 to 0.15 radians along one axis, either way."""
    angle = (1 if coin < 0.5 else -1) * (0.05 + 0.1 * strength) * 180 / torch.pi
    shear = [angle, 0.0] if (4 * coin) % 2 < 1 else [0.0, angle]
    return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear)


def _rotated(image: Tensor, strength: float, coin: float) -> Tensor:
    return F.rotate(image, (1 if coin < 0.5 else -1) * (1 + 9 * strength))


CHANGES: tuple[Callable[[Tensor, float, float], Tensor], ...] = (
    _by(0.1, 1.9, F.adjust_saturation),
    _by(0.5, 1.9, F.adjust_brightness),
    _by(0.5, 1.9, F.adjust_contrast),
    _by(0.1, 1.9, F.adjust_sharpness),
    lambda image, strength, coin: F.autocontrast(image),
    lambda image, strength, coin: F.equalize(image),
    _sheared,
    _rotated,
)
