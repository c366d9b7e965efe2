"""What cameras and files do: contrast, elastic deformation, large pixels, JPEG. x: [n,3,h,w] in [0,1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.corruptions.draws import Draws
from autolora.corruptions.filters import gaussian


def contrast(x: Tensor, c: float, _draws: Draws) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * c + mean


def elastic(x: Tensor, c: tuple[float, float, float], draws: Draws) -> Tensor:
    """Three points move, and the image with them; then each pixel by a smooth field. c: in shares of the side."""
    h, w = x.shape[2:]
    amount, smooth, affine = (part * min(h, w) for part in c)
    bent = _sampled(x, *_moved_by(draws.uniform(-affine, affine, 3, 2), h, w), mirror="without the last pixel")
    dx, dy = (amount * gaussian(draws.uniform(-1, 1, 1, h, w), smooth, "reflect", truncate=3.0)[:, 0] for _ in range(2))
    rows, columns = torch.arange(h).to(x), torch.arange(w).to(x)
    return _sampled(bent, columns + dx, rows[:, None] + dy, mirror="with it")


def _moved_by(offsets: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from, in x and y [n,h,w], when three points of the image have moved by these offsets."""
    third = min(h, w) // 3
    a, b = float(h // 2), float(w // 2)
    points = torch.tensor([[a + third, b + third], [a + third, b - third], [a - third, b - third]]).to(offsets)
    one = torch.ones(len(offsets), 3, 1).to(offsets)
    back = torch.linalg.solve(torch.cat([points + offsets, one], 2), points.expand(len(offsets), -1, -1))  # [n,3,2]
    y, x = torch.meshgrid(torch.arange(h).to(offsets), torch.arange(w).to(offsets), indexing="ij")
    here = torch.stack([x, y, torch.ones_like(x)], 2) @ back[:, None]
    return here[..., 0], here[..., 1]


def _sampled(image: Tensor, x: Tensor, y: Tensor, mirror: str) -> Tensor:
    """Bilinear at these pixel coordinates; beyond its edges the image is mirrored."""
    h, w = image.shape[2:]
    corners = mirror == "without the last pixel"
    scaled = [2 * v / (s - 1) - 1 if corners else (2 * v + 1) / s - 1 for v, s in ((x, w), (y, h))]
    return F.grid_sample(image, torch.stack(scaled, 3), padding_mode="reflection", align_corners=corners)


def pixelate(x: Tensor, c: float, _draws: Draws) -> Tensor:
    """Down by means, rounded to bytes along either side as Pillow does, and up by the nearest."""
    h, w = x.shape[2:]
    low, narrow = int(h * c), int(w * c)
    small = ((x * 255) @ _boxes(w, narrow).T).add(0.5).floor()
    small = (_boxes(h, low) @ small).add(0.5).floor()
    return (_boxes(low, h) @ small @ _boxes(narrow, w).T) / 255


def _boxes(size: int, new: int) -> Tensor:
    """Pillow's BOX filter, a row for each new pixel: the mean of the old ones whose centres lie within it."""
    scale = size / new
    reach = max(scale, 1.0)
    centre = (torch.arange(new).double()[:, None] + 0.5) * scale
    away = (torch.arange(size).double() + 0.5 - centre) / reach
    inside = ((away > -0.5) & (away <= 0.5)).double()
    return inside / inside.sum(1, keepdim=True)


def jpeg(x: Tensor, c: int, _draws: Draws) -> Tensor:
    from torchvision.io import decode_jpeg, encode_jpeg  # with it comes torchvision

    images = (x * 255).round().to(torch.uint8)
    return torch.stack([decode_jpeg(encode_jpeg(image, quality=c)) for image in images]).to(x) / 255
