"""Images as tensors on the device: uint8 storage, batches drawn and augmented at once.

One image costs its bytes and nothing more; floats exist for the length of a batch. What does not fit on the device
stays in its (memory-mapped) file, and only the batch at hand is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.common.errors import BadArgument
from autolora.common.memory import free_memory
from autolora.data.mixing import MIXED
from autolora.data.ragged import Rectangles, middle, moved, sampled

StoredImages = Tensor | np.ndarray | Rectangles
AUGMENTATIONS = ("auto", "crop_flip", "crop", "rrc_flip", "idbh", *MIXED, "none")
RESIDENT_SHARE = 0.25  # of the device's free memory that the images may take


def to_pixels(images: Tensor) -> Tensor:
    """uint8 [n,3,h,w] -> float in [0,1]; floats pass through."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random crop after zero padding, and a horizontal flip of every second image."""
    return cropped(images, draw_crops(len(images), generator, padding), padding)


def draw_crops(n: int, generator: torch.Generator, padding: int, flips: float = 0.5) -> Tensor:
    """[n,3]: top, left, flipped."""
    corners = torch.randint(0, 2 * padding + 1, (2, n), generator=generator)
    flipped = torch.rand(n, generator=generator) < flips
    return torch.stack([*corners, flipped.long()], 1)


def cropped(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """One gather for the whole batch; its index is made where the images are."""
    n, _, h, w = images.shape
    top, left, flipped = moved(draws, images.device).unbind(1)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    image, down, across = (torch.arange(k, device=images.device) for k in (n, h, w))
    rows = top[:, None] + down  # [n,h]
    columns = left[:, None] + torch.where(flipped[:, None] > 0, across.flip(0), across)  # [n,w]
    picked = padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # channels_last in memory


def draw_boxes(n: int, generator: torch.Generator, tries: int = 10) -> Tensor:
    """[n,23]: of what `boxes` needs, all that does not depend on the image's shape. As torchvision's RandomResizedCrop:
    8 to 100 % of the area, aspect 3/4 to 4/3, up to ten tries.
    """
    area = torch.empty(n, tries).uniform_(0.08, 1, generator=generator)
    ratio = torch.exp(torch.empty(n, tries).uniform_(-1, 1, generator=generator) * np.log(4 / 3))
    return torch.cat([area, ratio, torch.rand(3, n, generator=generator).T], 1)


def boxes(draws: Tensor, shapes: Tensor) -> Tensor:
    """[n,5]: top, left, height, width, flipped, in images of these heights and widths [n,2]."""
    tries = (draws.shape[1] - 3) // 2
    share, ratio, (u, v, coin) = draws[:, :tries], draws[:, tries : 2 * tries], draws[:, 2 * tries :].unbind(1)
    h, w = shapes.float().unbind(1)
    area = (h * w)[:, None] * share
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width <= w[:, None]) & (height <= h[:, None])
    first = fits.int().argmax(1, keepdim=True)  # the first try that fits, else the whole image
    width = torch.where(fits.any(1), width.gather(1, first)[:, 0], w)
    height = torch.where(fits.any(1), height.gather(1, first)[:, 0], h)
    return torch.stack([(u * (h - height + 1)).floor(), (v * (w - width + 1)).floor(), height, width, (coin < 0.5)], 1)


def resized_crop(images: Tensor | Rectangles, draws: Tensor, size: int) -> Tensor:
    if isinstance(images, Rectangles):
        return sampled(images, boxes(draws, images.shapes), size)
    shape = torch.tensor(images.shape[-2:], device=draws.device)
    return resized(images, boxes(draws, shape.expand(len(images), 2)), size)


def resized(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Each image's box at size x size, bilinear: one sampling for the whole batch. Floats in [0,1].

    Six numbers an image go to the images' device, where the grid is made: two for each pixel, 51 MB for 128 at 224.
    """
    n, _, h, w = images.shape
    top, left, height, width, flipped = boxes.unbind(1)
    theta = boxes.new_zeros(n, 2, 3)
    theta[:, 0, 0] = torch.where(flipped > 0, -1.0, 1.0) * width / w
    theta[:, 1, 1] = height / h
    theta[:, 0, 2] = (2 * left + width) / w - 1
    theta[:, 1, 2] = (2 * top + height) / h - 1
    pixels = to_pixels(images)
    grid = F.affine_grid(moved(theta, images.device), [n, 3, size, size], align_corners=False)
    return F.grid_sample(pixels, grid.to(pixels.dtype), padding_mode="border", align_corners=False).clamp_(0, 1)


def centre(images: Tensor | Rectangles, size: int) -> Tensor:
    """The middle size x size pixels."""
    if isinstance(images, Rectangles):
        return middle(images, size)
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


class Augmentation(NamedTuple):
    """Drawing is apart from applying: several processes draw for the global batch, and each applies its part."""

    draw: Callable[[int, torch.Generator], Tensor]  # [n,...], one row an image
    apply: Callable[[Any, Tensor], Tensor]  # to a batch as `take` gives it


def augmentation(name: str, stored: int, size: int) -> Augmentation:
    """How training images are varied. `auto`: resized crop and flip where images are stored larger than they are used,
    else crop (padding an eighth of the side: 4 at 32 pixels) and flip. Images like digits want `crop`: no mirror.
    What is mixed is cropped as `auto` says first.
    """
    if name not in AUGMENTATIONS:
        raise BadArgument("augmentation", name, f"expected one of {', '.join(AUGMENTATIONS)}")
    if name in ("auto", *MIXED):
        name = "rrc_flip" if stored > size else "crop_flip"
    if name == "idbh":
        from autolora.data import idbh  # torchvision brings a compiler along: 80 MB in every process that imports it

        return Augmentation(idbh.draw, lambda x, d: idbh.varied(centre(x, size), d))
    padding = max(1, size // 8)
    return {
        "crop_flip": Augmentation(
            lambda n, g: draw_crops(n, g, padding), lambda x, d: cropped(centre(x, size), d, padding)
        ),
        "crop": Augmentation(
            lambda n, g: draw_crops(n, g, padding, flips=0.0), lambda x, d: cropped(centre(x, size), d, padding)
        ),
        "rrc_flip": Augmentation(lambda n, g: draw_boxes(n, g), lambda x, d: resized_crop(x, d, size)),
        "none": Augmentation(lambda n, g: torch.zeros(n, 0), lambda x, d: centre(x, size)),
    }[name]


def take(images: StoredImages, index: Tensor, device: torch.device) -> Any:
    """Some images, on the device: from a tensor, or read from an array that may be a memory-mapped file. Rectangles
    stay rectangles, a tensor is a tensor."""
    if isinstance(images, Rectangles):
        return images.take(index, device)
    if isinstance(images, Tensor):
        return images[moved(index, images.device)].to(device)
    rows = index.numpy()
    order = np.argsort(rows)  # files are read forwards
    picked = np.empty((len(rows), *images.shape[1:]), images.dtype)
    picked[order] = images[rows[order]]
    return moved(torch.from_numpy(picked), device)


def stream(images: StoredImages, batches: Iterable[Tensor], device: torch.device) -> Iterator[Any]:
    """The images of each batch; from a file, the next batch is read while the present one is at work."""
    if isinstance(images.flat if isinstance(images, Rectangles) else images, Tensor):
        yield from (take(images, index, device) for index in batches)
        return
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Any]] = deque()
        for index in batches:
            waiting.append(reader.submit(take, images, index, device))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def place(images: StoredImages, device: torch.device, memory: float | None = None) -> StoredImages:
    """All images on the device where they take at most `memory` bytes (a quarter of what is free), else as they are."""
    if images.nbytes > (RESIDENT_SHARE * free_memory(device) if memory is None else memory):
        return images
    return (torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images).to(device)
