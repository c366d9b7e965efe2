"""What stages.validate judges an image by: its mean and deviation, and a hash that outlives another compression.

Of many images at once: of one small image, the calls would take longer than what they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VALUES = np.arange(256.0)
GREY = torch.tensor([299, 587, 114]).view(3, 1, 1)  # thousandths of red, green and blue (ITU-R 601)


def described(squares: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Of uint8 [3,s,s] each: mean and std of all levels, phash as 64 hex digits."""
    images = torch.stack([torch.from_numpy(square) for square in squares])
    found = zip(*_moments(images), dhash(images))
    return [{"mean": round(mean, 2), "std": round(std, 2), "phash": phash} for mean, std, phash in found]


def _moments(images: Tensor) -> tuple[list[float], list[float]]:
    """From the counts of each value: whole numbers, the same on every machine, and quicker than from the pixels."""
    counts = torch.stack([image.bincount(minlength=256) for image in images.flatten(1)]).numpy()
    pixels = images[0].numel()
    mean = counts @ VALUES / pixels
    variance = counts @ VALUES**2 / pixels - mean**2
    return mean.tolist(), np.sqrt(np.maximum(variance, 0)).tolist()


def dhash(images: Tensor) -> list[str]:
    """256 bits of each: is each of 16 x 16 places brighter than its left neighbour, by a whole grey level?"""
    small = F.interpolate(images, (16, 17), mode="bilinear", antialias=True)
    grey = ((small * GREY).sum(1) + 500).numpy() // 1000  # finer, a flat background's noise would count
    brighter = grey[:, :, 1:] > grey[:, :, :-1]
    return [bits.tobytes().hex() for bits in np.packbits(brighter.reshape(len(images), -1), axis=1)]
