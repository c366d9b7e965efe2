"""Images mixed with others of their batch, and labels mixed as they are: CutMix (Yun et al., 2019), and interpolation.

    cutmix        one box a batch shows the partner:   y = l * y_i + (1 - l) * y_j,  l: the share of pixels that stay
    interpolate   x = l * x_i + (1 - l) * x_j,         y as above

l ~ Beta(1, 1), which is uniform. Partners and l are drawn once for the global batch.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

MIXED = ("cutmix", "interpolate")  # of the augmentations


class Pairs(NamedTuple):
    partners: Tensor  # [n]: a permutation
    stays: float  # l, before a box has whole pixels
    place: tuple[float, float]  # of the box's centre, as shares of the sides


def draw_pairs(n: int, generator: torch.Generator) -> Pairs:
    partners = torch.randperm(n, generator=generator)
    stays, down, across = torch.rand(3, generator=generator).tolist()
    return Pairs(partners, stays, (down, across))


def box(pairs: Pairs, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that show the partner: a share 1 - l of the pixels, less what lies beyond the border."""
    cut = sqrt(1 - pairs.stays)
    half_height, half_width = int(cut * height) // 2, int(cut * width) // 2
    y, x = int(pairs.place[0] * height), int(pairs.place[1] * width)
    rows = slice(max(0, y - half_height), min(height, y + half_height))
    return rows, slice(max(0, x - half_width), min(width, x + half_width))


def cutmix(x: Tensor, labels: Tensor, others: Tensor, theirs: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Images [n,3,h,w] and labels [n,classes] with those of their partners."""
    height, width = x.shape[-2:]
    rows, columns = box(pairs, height, width)
    mixed = x.clone()
    mixed[..., rows, columns] = others[..., rows, columns]
    stays = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, stays * labels + (1 - stays) * theirs


def interpolated(x: Tensor, labels: Tensor, others: Tensor, theirs: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    stays = pairs.stays
    return stays * x + (1 - stays) * others, stays * labels + (1 - stays) * theirs
