"""Images as tensors on the device: uint8 storage, batches drawn and augmented at once.

One image costs its bytes and nothing more; floats exist for the length of a batch. What does not fit on the device
stays in its (memory-mapped) file, and only the batch at hand is read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENTATIONS = ("auto", "crop_flip", "crop", "rrc_flip", "none")
RESIDENT_SHARE = 0.25  # of the device's free memory that the images may take


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [n,3,h,w] -> float in [0,1]; floats pass through."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4, flips: float = 0.5) -> Tensor:
    """Random crop after zero padding, and a horizontal flip of every second image: one gather for the whole batch."""
    n, _, h, w = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    flip = torch.rand(n, generator=generator) < flips
    rows = top[:, None] + torch.arange(h)  # [n,h]
    columns = left[:, None] + torch.where(flip[:, None], torch.arange(w).flip(0), torch.arange(w))  # [n,w]
    index = torch.arange(n)[:, None, None]
    device = images.device
    picked = padded.permute(0, 2, 3, 1)[index.to(device), rows[:, :, None].to(device), columns[:, None, :].to(device)]
    return picked.permute(0, 3, 1, 2)  # channels_last in memory


def crop(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Shifts alone, for images that mean something else in the mirror: digits, letters."""
    return crop_and_flip(images, generator, padding, flips=0.0)


def resized_crop_and_flip(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Random resized crop (8 to 100 % of the area, aspect 3/4 to 4/3, bilinear) and flip: one sampling for the batch.

    The boxes are drawn as in torchvision: up to ten tries an image, then the whole image.
    """
    n, _, h, w = images.shape
    height, width, top, left = _boxes(n, h, w, generator)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = mirror * width / w
    theta[:, 1, 1] = height / h
    theta[:, 0, 2] = (2 * left + width) / w - 1
    theta[:, 1, 2] = (2 * top + height) / h - 1
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False).to(images.device)
    return F.grid_sample(to_pixels(images), grid, padding_mode="border", align_corners=False).clamp_(0, 1)


def _boxes(n: int, h: int, w: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tries = 10
    area = h * w * torch.empty(n, tries).uniform_(0.08, 1, generator=generator)
    ratio = torch.exp(torch.empty(n, tries).uniform_(-1, 1, generator=generator) * np.log(4 / 3))
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width <= w) & (height <= h)
    first = fits.int().argmax(1, keepdim=True)  # the first try that fits
    found = fits.any(1)
    width = torch.where(found, width.gather(1, first)[:, 0], float(w))
    height = torch.where(found, height.gather(1, first)[:, 0], float(h))
    top, left = torch.rand(2, n, generator=generator)
    return height, width, (top * (h - height + 1)).floor(), (left * (w - width + 1)).floor()


def centre(images: Tensor, size: int) -> Tensor:
    """The middle size x size pixels."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def augmentation(name: str, stored: int, size: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """How training images are varied. `auto`: resized crop and flip where images are stored larger than they are used,
    else crop (padding an eighth of the side: 4 at 32 pixels) and flip. Images like digits want `crop`: no mirror.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"finetune.augmentation is {name!r}: expected one of {', '.join(AUGMENTATIONS)}")
    if name == "auto":
        name = "rrc_flip" if stored > size else "crop_flip"
    padding = max(1, size // 8)
    return {
        "crop_flip": lambda x, g: crop_and_flip(centre(x, size), g, padding),
        "crop": lambda x, g: crop(centre(x, size), g, padding),
        "rrc_flip": lambda x, g: resized_crop_and_flip(x, g, size),
        "none": lambda x, g: centre(x, size),
    }[name]


def take(images: Tensor | np.ndarray, index: Tensor, device: torch.device) -> Tensor:
    """Some images, on the device: from a tensor, or read from an array that may be a memory-mapped file."""
    if isinstance(images, Tensor):
        return images[index.to(images.device)].to(device)
    rows = index.numpy()
    order = np.argsort(rows)  # files are read forwards
    picked = np.empty((len(rows), *images.shape[1:]), images.dtype)
    picked[order] = images[rows[order]]
    return torch.from_numpy(picked).to(device)


def place(images: Tensor | np.ndarray, device: torch.device) -> Tensor | np.ndarray:
    """All images on the device where they take at most a quarter of its free memory, else as they are."""
    if images.nbytes > RESIDENT_SHARE * free_memory(device):
        return images
    return (images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))).to(device)


def free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        return 4 << 30
