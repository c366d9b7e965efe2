"""The corruptions as their authors tell them: one image [h,w,3] at a time, in numpy, scipy, Pillow and loops.

Nothing is shared with the product but the random numbers, which `draws` hands out in the same order.
"""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import scipy.ndimage as nd
from PIL import Image


def last(drawn) -> np.ndarray:
    """[1,c,h,w] -> [h,w,c]."""
    return drawn[0].permute(1, 2, 0).numpy()


def gaussian_noise(x, c, draws):
    return x + last(draws.normal(3, *x.shape[:2])) * c


def shot_noise(x, c, draws):
    import torch

    return last(draws.poisson(torch.from_numpy(x * c).permute(2, 0, 1)[None])) / c


def impulse_noise(x, c, draws):
    hit, white = (last(draws.uniform(0, 1, 3, *x.shape[:2])) for _ in range(2))
    out = x.copy()
    out[(hit < c) & (white < 0.5)] = 1
    out[(hit < c) & (white >= 0.5)] = 0
    return out


def defocus_blur(x, c, _draws):
    radius, alias = c
    reach, taps = (8, 3) if radius <= 8 else (int(radius), 5)
    grid = [[float(i * i + j * j <= radius**2) for j in range(-reach, reach + 1)] for i in range(-reach, reach + 1)]
    kernel = np.array(grid) / np.sum(grid)
    soft = np.array([math.exp(-((i - taps // 2) ** 2) / (2 * alias**2)) for i in range(taps)])
    for axis in (0, 1):
        kernel = nd.correlate1d(kernel, soft / soft.sum(), axis, mode="mirror")
    return np.stack([nd.correlate(x[..., d], kernel, mode="mirror") for d in range(3)], 2)


def glass_blur(x, c, draws):
    sigma, reach, times = c
    h, w = x.shape[:2]
    image = (nd.gaussian_filter(x, (sigma, sigma, 0), mode="nearest") * 255).astype(np.uint8)
    offsets = draws.whole(-reach, reach, times, h - 2 * reach, w - 2 * reach, 2)[0].tolist()
    for time in range(times):
        for i, row in enumerate(range(h - reach, reach, -1)):
            for j, column in enumerate(range(w - reach, reach, -1)):
                dx, dy = offsets[time][i][j]
                image[row, column] = image[row + dy, column + dx]
    return nd.gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest")


def _motion(x, radius, sigma, angle):
    width = 2 * radius + 1
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(width)]
    out = np.zeros_like(x)
    for i, weight in enumerate(weights):
        dy, dx = (-math.ceil(i * f(math.radians(angle)) - 0.5) for f in (math.sin, math.cos))
        if abs(dy) >= x.shape[0] or abs(dx) >= x.shape[1]:
            break
        out += weight / sum(weights) * nd.shift(x, (dy, dx, 0), order=0, mode="nearest")
    return out


def motion_blur(x, c, draws):
    return _motion(x, *c, float(draws.uniform(-45, 45)))


def _clipped_zoom(x, factor):
    h = x.shape[0]
    ch = math.ceil(h / factor)
    top = (h - ch) // 2
    large = nd.zoom(x[top : top + ch, top : top + ch], (factor, factor, 1), order=1)
    trim = (large.shape[0] - h) // 2
    return large[trim : trim + h, trim : trim + h]


def zoom_blur(x, c, _draws):
    factors = np.arange(1, c[0], c[1])
    return np.mean([x, *(_clipped_zoom(x, f) for f in factors)], 0)


def snow(x, c, draws):
    layer = _clipped_zoom(last(draws.normal(1, *x.shape[:2])) * c[1] + c[0], c[2])
    layer[layer < c[3]] = 0
    layer = _motion(layer.clip(0, 1), c[4], c[5], float(draws.uniform(-135, -45)))
    layer = np.round(layer * 255) / 255
    grey = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    return c[6] * x + (1 - c[6]) * np.maximum(x, grey * 1.5 + 0.5) + layer + np.rot90(layer, k=2)


def fractal(draws, side, decay):
    """Diamond-square, point by point, on a torus."""
    size = 1
    while size < side:
        size *= 2
    a, step, wide = [[0.0] * size for _ in range(size)], size, 100.0
    while step >= 2:
        half = step // 2
        count = size // step

        def at(row, column):
            return a[row % size][column % size]

        cells = [(i, j) for i in range(count) for j in range(count)]
        for places in (
            [
                (i * step + half, j * step + half, [(-half, -half), (-half, half), (half, -half), (half, half)])
                for i, j in cells
            ],
            [(i * step, j * step + half, [(-half, 0), (half, 0), (0, -half), (0, half)]) for i, j in cells],
            [(i * step + half, j * step, [(-half, 0), (half, 0), (0, -half), (0, half)]) for i, j in cells],
        ):
            wobble = (wide * draws.uniform(-wide, wide, count, count)[0]).flatten().tolist()
            for (row, column, around), more in zip(places, wobble):
                a[row][column] = sum(at(row + i, column + j) for i, j in around) / 4 + more
        step, wide = half, wide / decay
    field = np.array(a)
    return (field - field.min()) / (field.max() - field.min())


def fog(x, c, draws):
    h, w = x.shape[:2]
    top = x.max()
    return (x + c[0] * fractal(draws, max(h, w), c[1])[:h, :w, None]) * top / (top + c[0])


def brightness(x, c, _draws):
    rows = []
    for r, g, b in x.reshape(-1, 3).tolist():
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        rows.append(colorsys.hsv_to_rgb(h, s, min(v + c, 1)))
    return np.array(rows).reshape(x.shape)


def contrast(x, c, _draws):
    return (x - x.mean((0, 1))) * c + x.mean((0, 1))


def elastic_transform(x, c, draws):
    h, w = x.shape[:2]
    alpha, sigma, affine = (part * min(h, w) for part in c)
    third, a, b = min(h, w) // 3, h // 2, w // 2
    before = np.array([[a + third, b + third], [a + third, b - third], [a - third, b - third]], float)
    after = before + draws.uniform(-affine, affine, 3, 2)[0].numpy()
    back = np.linalg.lstsq(np.c_[after, np.ones(3)], before, rcond=None)[0]  # pixels of the result -> of the image
    rows, columns = np.mgrid[:h, :w]
    source = np.c_[columns.ravel(), rows.ravel(), np.ones(h * w)] @ back
    bent = _read(x, source[:, 1].reshape(h, w), source[:, 0].reshape(h, w), "mirror")
    dx, dy = (
        alpha * nd.gaussian_filter(draws.uniform(-1, 1, 1, h, w)[0, 0].numpy(), sigma, mode="reflect", truncate=3)
        for _ in range(2)
    )
    return _read(bent, rows + dy, columns + dx, "reflect")


def _read(x, rows, columns, mode):
    return np.stack([nd.map_coordinates(x[..., d], [rows, columns], order=1, mode=mode) for d in range(3)], 2)


def _picture(x) -> Image.Image:
    return Image.fromarray(np.round(x * 255).astype(np.uint8))


def pixelate(x, c, _draws):
    h, w = x.shape[:2]
    small = _picture(x).resize((int(w * c), int(h * c)), Image.Resampling.BOX)
    return np.array(small.resize((w, h), Image.Resampling.BOX)) / 255


def jpeg_compression(x, c, _draws):
    file = io.BytesIO()
    _picture(x).save(file, "JPEG", quality=c)
    return np.array(Image.open(file)) / 255
