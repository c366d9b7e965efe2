"""Noise of the sensor: Gaussian, shot and impulse noise. x: [n,3,h,w] in [0,1], c: the strength."""

from __future__ import annotations

import torch
from torch import Tensor

from autolora.corruptions.draws import Draws


def gaussian(x: Tensor, c: float, draws: Draws) -> Tensor:
    return x + c * draws.normal(*x.shape[1:])


def shot(x: Tensor, c: float, draws: Draws) -> Tensor:
    """c photons where a pixel is white."""
    return draws.poisson(x * c) / c


def impulse(x: Tensor, c: float, draws: Draws) -> Tensor:
    """A share c of the values becomes 0 or 1, as often either."""
    hit, white = draws.uniform(0, 1, *x.shape[1:]) < c, draws.uniform(0, 1, *x.shape[1:]) < 0.5
    return torch.where(hit, white.to(x), x)
