"""Random numbers that belong to an image: a function of (seed, attack, image id) and a counter, of nothing else.

    keys = image_keys(seed, "square", ids);  u = uniform(keys, start=0, count=5)        # float32 [n,5] in [0,1)

SplitMix64 (Steele, Lea & Flood, 2014) as a counter-based generator, in integer arithmetic on the device: the same
numbers on every machine, in every order and grouping, and the caller's random state is never touched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def image_keys(seed: int, attack: str, ids: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    """One 64-bit key per image: int64 [n]."""
    digests = [hashlib.sha256(f"{seed}\n{attack}\n{i}".encode()).digest()[:8] for i in ids]
    return torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests], dtype=torch.int64, device=device)


def bits(keys: Tensor, start: int, count: int) -> Tensor:
    """The draws start .. start + count - 1 of every key: int64 [n,count]."""
    if keys.device.type == "cpu":
        return torch.from_numpy(_in_numpy(keys, start, count).view(np.int64))
    return bits_in_torch(keys, start, count)


def uniform(keys: Tensor, start: int, count: int) -> Tensor:
    """float32 in [0,1), 24 bits each: exact on every device."""
    if keys.device.type == "cpu":
        high = _in_numpy(keys, start, count) >> np.uint64(40)
        return torch.from_numpy(high.astype(np.float32) * np.float32(2.0**-24))
    return _right(bits_in_torch(keys, start, count), 40).float() * 2.0**-24


def bits_in_torch(keys: Tensor, start: int, count: int) -> Tensor:
    """As a GPU draws them."""
    counters = torch.arange(start + 1, start + count + 1, device=keys.device)
    z = keys[:, None] + counters * _signed(GOLDEN)
    z = (z ^ _right(z, 30)) * _signed(MIX_1)
    z = (z ^ _right(z, 27)) * _signed(MIX_2)
    return z ^ _right(z, 31)


def _in_numpy(keys: Tensor, start: int, count: int) -> np.ndarray:
    """The same as uint64, of which numpy draws a handful in a third of torch's time."""
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z = keys.numpy().view(np.uint64)[:, None] + counters * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def _right(z: Tensor, places: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically."""
    return (z >> places) & ((1 << (64 - places)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def normal(keys: Tensor, start: int, count: int) -> Tensor:
    """Box-Muller, two uniforms for each."""
    u, v = uniform(keys, start, 2 * count).chunk(2, dim=1)
    return (-2 * torch.log1p(-u)).sqrt() * torch.cos(2 * math.pi * v)


def shifted(keys: Tensor, places: Tensor) -> Tensor:
    """Keys whose draw 0 is draw `places` of the given ones."""
    return keys + places * _signed(GOLDEN)
