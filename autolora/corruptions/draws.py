"""Random numbers that belong to an image: of one (seed, name, id) always the same, whatever else is in the batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


class Draws:
    """Each call draws the next numbers of every image: [n, *shape], float64 on the CPU."""

    def __init__(self, seed: int, name: str, ids: Sequence[str]) -> None:
        keys = [hashlib.sha256(f"{seed}/{name}/{one}".encode()).digest()[:8] for one in ids]
        self.generators = [torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1) for key in keys]

    def normal(self, *shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in self.generators])

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        drawn = [torch.rand(shape, generator=g, dtype=torch.float64) for g in self.generators]
        return torch.stack(drawn) * (high - low) + low

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """From low to high - 1."""
        return torch.stack([torch.randint(low, high, shape, generator=g) for g in self.generators])

    def poisson(self, rates: Tensor) -> Tensor:
        return torch.stack([torch.poisson(rate, generator=g) for rate, g in zip(rates, self.generators, strict=True)])
