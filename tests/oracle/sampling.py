"""Random resized crops as they were sampled while grids and indices were made on the CPU: the bits must stay.

Nothing here imports the code under test.
"""

import torch
import torch.nn.functional as F


def resized(pixels, boxes, size):
    """Floats [n,3,h,w]."""
    n, _, h, w = pixels.shape
    top, left, height, width, flipped = boxes.unbind(1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.where(flipped > 0, -1.0, 1.0) * width / w
    theta[:, 1, 1] = height / h
    theta[:, 0, 2] = (2 * left + width) / w - 1
    theta[:, 1, 2] = (2 * top + height) / h - 1
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False).clamp_(0, 1)


def sampled(images, boxes, size):
    """Images of their own shapes, uint8 [3,h,w] each."""
    top, left, height, width, flipped = boxes.unbind(1)
    h, w = torch.tensor([image.shape[1:] for image in images]).unbind(1)
    (y0, y1, v), (x0, x1, u) = taps(top, height, h, size), taps(left, width, w, size)
    x0, x1, u = (torch.where(flipped[:, None] > 0, t.flip(1), t) for t in (x0, x1, u))
    upper, lower = (picked(images, y, x0).lerp(picked(images, y, x1), u[:, None, None, :]) for y in (y0, y1))
    return upper.lerp(lower, v[:, None, :, None]) / 255


def taps(begin, length, limit, size):
    places = begin[:, None] + length[:, None] * ((torch.arange(size) + 0.5) / size) - 0.5
    places = places.clamp(min=0).minimum(limit[:, None] - 1)
    before = places.floor()
    return before.long(), (before.long() + 1).minimum(limit[:, None] - 1), places - before


def picked(images, rows, columns):
    return torch.stack([image[:, y[:, None], x] for image, y, x in zip(images, rows, columns)]).float()
