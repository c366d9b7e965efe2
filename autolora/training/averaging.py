"""Averaged weights, which are validated and shipped in place of the last ones (`average`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def following(decay: float) -> Callable[..., None]:
    """An exponential average that starts fast, min(decay, (1 + n) / (10 + n)): with few steps an epoch a slow one is
    still the untrained network when the controller judges it.
    """

    @torch.no_grad()
    def follow(averages: list[Tensor], values: list[Tensor], n: Tensor) -> None:
        weight = 1 - torch.clamp((1 + n) / (10 + n), max=decay)  # a tensor: no waiting for the device
        for average, value in zip(averages, values):
            if average.is_floating_point():
                average.lerp_(value, weight.to(average.dtype))
            else:  # a counter of batch norm
                average.copy_(value)

    return follow
