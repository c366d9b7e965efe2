"""Pictures that are like no other, as files of any kind."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A picture like no other: coloured clouds."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    clouds = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return clouds.filter(ImageFilter.GaussianBlur(1))


def fill(folder: Path, classes=("cat", "dog"), images: int = 20, first: int = 0) -> None:
    """Class folders with pictures 0.png, 1.png, ..., all different."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + images):
            picture(1000 * number + index).save(folder / name / f"{index}.png")


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
