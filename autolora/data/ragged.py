"""Images of many shapes in one flat array of bytes, in memory or memory-mapped, and the squares that are cut from them.

    images = rectangles(np.load("images.npy", mmap_mode="r"), np.load("shapes.npy"))
    some = images.take(index, device);  x = sampled(some, boxes, 224)

Nothing is padded: a batch is as many bytes as its images, and pixels are gathered from it. Their index is made where
the bytes are, from a few numbers an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rectangles:
    flat: Tensor | np.ndarray  # uint8: every image as [3,h,w], one after the other
    shapes: Tensor  # int64 [n,2]: height and width; on the CPU, where crops are drawn
    offsets: Tensor  # int64 [n]: where in `flat` each image begins

    ndim = 4
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """[n,3,s,s], as far as every image reaches."""
        return (len(self), 3, *[int(self.shapes.min())] * 2)

    @property
    def nbytes(self) -> int:
        return int(_sizes(self.shapes).sum())

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, some: slice) -> Tensor | np.ndarray:
        """The bytes of images that lie side by side."""
        chosen = self.offsets[some]
        if len(chosen) == 0:
            return self.flat[:0]
        return self.flat[int(chosen[0]) : int(chosen[-1] + _sizes(self.shapes[some])[-1])]

    def to(self, device: torch.device) -> Rectangles:
        flat = self.flat if isinstance(self.flat, Tensor) else torch.from_numpy(np.array(self.flat))
        return replace(self, flat=flat.to(device))

    def take(self, index: Tensor, device: torch.device) -> Rectangles:
        """Some images, on the device: those that lie there already are not copied."""
        shapes, begin = self.shapes[index], self.offsets[index]
        if isinstance(self.flat, Tensor) and self.flat.device.type == device.type:
            return Rectangles(self.flat, shapes, begin)
        sizes = _sizes(shapes)
        offsets = sizes.cumsum(0) - sizes
        part, flat = np.empty(int(sizes.sum()), np.uint8), np.asarray(self.flat)
        for i in begin.argsort().tolist():  # files are read forwards
            part[offsets[i] : offsets[i] + sizes[i]] = flat[begin[i] : begin[i] + sizes[i]]
        return Rectangles(moved(torch.from_numpy(part), device), shapes, offsets)

    def together(self) -> Rectangles:
        """Shapes and offsets too on the device of the bytes."""
        assert isinstance(self.flat, Tensor)
        device = self.flat.device
        return replace(self, shapes=moved(self.shapes, device), offsets=moved(self.offsets, device))


def rectangles(flat: Tensor | np.ndarray, shapes: Tensor | np.ndarray) -> Rectangles:
    shapes = torch.from_numpy(np.array(shapes)).long()
    sizes = _sizes(shapes)
    if len(flat) != (needed := int(sizes.sum())):
        raise ValueError(f"the images have {len(flat)} bytes, and their shapes ask for {needed}: prepare them again")
    return Rectangles(flat, shapes, sizes.cumsum(0) - sizes)


def moved(values: Tensor, device: torch.device) -> Tensor:
    """To a GPU without waiting for what it is at: from memory that the system does not move."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _sizes(shapes: Tensor) -> Tensor:
    return 3 * shapes.prod(1)


def middle(images: Rectangles, size: int) -> Tensor:
    """uint8 [n,3,size,size]"""
    images = images.together()
    top, left = ((images.shapes - size) // 2).unbind(1)
    steps = torch.arange(size, device=top.device)
    return _picked(images, top[:, None] + steps, left[:, None] + steps)


def sampled(images: Rectangles, boxes: Tensor, size: int) -> Tensor:
    """Each image's box (top, left, height, width, flipped) at size x size, bilinear. Floats in [0,1]."""
    images = images.together()
    top, left, height, width, flipped = moved(boxes, images.shapes.device).unbind(1)
    h, w = images.shapes.unbind(1)
    (y0, y1, v), (x0, x1, u) = _taps(top, height, h, size), _taps(left, width, w, size)
    mirror = flipped[:, None] > 0
    x0, x1, u = (torch.where(mirror, t.flip(1), t) for t in (x0, x1, u))
    across, down = u[:, None, None, :], v[:, None, :, None]
    upper, lower = (_picked(images, y, x0).float().lerp_(_picked(images, y, x1).float(), across) for y in (y0, y1))
    return upper.lerp_(lower, down).div_(255)


def _taps(begin: Tensor, length: Tensor, limit: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per image, of `size` places along one side: the pixel before, the pixel after, and the weight of the latter."""
    steps = torch.arange(size, device=begin.device)
    places = begin[:, None] + length[:, None] * ((steps + 0.5) / size) - 0.5
    places = places.clamp(min=0).minimum(limit[:, None] - 1)
    before = places.floor()
    return before.long(), (before.long() + 1).minimum(limit[:, None] - 1), places - before


def _picked(images: Rectangles, rows: Tensor, columns: Tensor) -> Tensor:
    """uint8 [n,3,s,s]: of each image these rows [n,s] and columns [n,s]; all of it on one device."""
    assert isinstance(images.flat, Tensor)
    h, w = images.shapes.unbind(1)
    lines = images.offsets[:, None] + rows * w[:, None]
    index, plane = lines[:, :, None] + columns[:, None, :], (h * w)[:, None, None]
    return torch.stack([images.flat.take(index + colour * plane) for colour in range(3)], 1)
