"""Images as tensors on the device: uint8 storage, batches drawn and augmented at once.

One image costs its bytes and nothing more; floats exist for the length of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [n,3,h,w] -> float in [0,1]; floats pass through."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crop after zero padding, and a horizontal flip of every second image: one gather for the whole batch."""
    n, _, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(h)  # [n,h]
    columns = left[:, None] + torch.where(flip[:, None], torch.arange(w).flip(0), torch.arange(w))  # [n,w]
    index = torch.arange(n)[:, None, None]
    device = images.device
    picked = padded.permute(0, 2, 3, 1)[index.to(device), rows[:, :, None].to(device), columns[:, None, :].to(device)]
    return picked.permute(0, 3, 1, 2)  # channels_last in memory
