"""An image file as pixels, as `prepare` and `autolora attack` both mean it.

    pixels = picture(content)      # uint8 [1,h,w] or [3,h,w]; BadImage, or what a decoder raises on broken bytes

The EXIF orientation is applied; 16-bit grey is scaled to 8 bits; a palette and CMYK become RGB; what is transparent
lies on white; of an animation the first frame counts. `scaled` scales as both do: torch's antialiased bilinear,
which is Pillow's up to one grey level in a pixel of 700, the same bits on every level of a processor's instructions.
"""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

# Formats that Pillow decodes by itself, each known by its first bytes: no PostScript, nothing that starts a program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
WHITE = (255, 255, 255, 255)
MANY, PACKED = 50 * 10**6, 100  # pixels, and pixels a byte: what has more of both was made to fill the memory
ORIENTATION = 0x0112  # the EXIF tag
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # long comments are no fault of the pixels


class BadImage(Exception):
    """Why an image cannot be used, as `code: what to do`; the code is what stages.validate sorts by."""


def picture(content: bytes) -> Tensor:
    """Of any format, in its own size. Decoders warn of metadata without naming a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = opened(content)
        refuse_bomb(image, len(content))
        if orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        return levels(on_white(to_eight_bits(image)))


def scaled(pixels: Tensor, cut: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """[c,h,w]: the middle, of the height and width `cut`, at that shape."""
    pixels = middle(pixels, *cut)
    if pixels.shape[1:] == shape:
        return pixels
    return F.interpolate(pixels[None], shape, mode="bilinear", antialias=True)[0]


def middle(pixels: Tensor, height: int, width: int) -> Tensor:
    """A line more where the middle is none: half a pixel at both edges is less than half a pixel everywhere."""
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : pixels.shape[1] - top, left : pixels.shape[2] - left]


def opened(content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=formats())
    except UnidentifiedImageError:
        raise BadImage("not an image: no format that is read here; convert it to JPEG or PNG, or remove it") from None
    require_pixels(image)
    return image


def require_pixels(image: Image.Image) -> None:
    if not image.width or not image.height:
        raise BadImage("broken: it has no pixels; restore or remove it")


@cache
def formats() -> tuple[str, ...]:
    """Every Image.open names them: by itself Pillow would start Ghostscript for an EPS, whatever its name."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF, for one, is not in every build


def refuse_bomb(image: Image.Image, size: int) -> None:
    """Gigabytes that lie in some hundred kilobytes."""
    pixels = image.width * image.height
    if pixels > MANY and pixels > PACKED * size:
        raise BadImage(f"too large: {pixels // 10**6} million pixels in {size // 1000} kB, all but empty; shrink it")


def orientation(image: Image.Image) -> int:
    if image.format == "JPEG" and "exif" not in image.info:
        return 1
    if image.format not in ("JPEG", "TIFF"):
        image.load()  # in a PNG the EXIF may stand behind the pixels; whether these are whole is no question of EXIF
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF in a PNG or WebP raises what it likes; the pixels are whole
        return 1


def to_eight_bits(image: Image.Image) -> Image.Image:
    """A mode that resizes well: L, RGB or RGBA."""
    if image.mode in ("L", "RGB", "RGBA"):
        return image.convert("RGBA") if "transparency" in image.info else image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(np.asarray(image)))
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _scaled(values: np.ndarray) -> np.ndarray:
    """16-bit integers by their full range, floats from 0 to 1; any other range is unknown."""
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0 and high <= 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded; 257 is odd
    if low >= 0 and high <= 1:
        return np.round(values * 255).astype(np.uint8)
    raise BadImage(f"unknown range: values from {low:g} to {high:g}; save it with 8 or 16 bits")


def on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def levels(image: Image.Image) -> Tensor:
    """uint8 [1,h,w] or [3,h,w]."""
    found = np.asarray(image)
    return torch.from_numpy(found.reshape(*found.shape[:2], -1)).permute(2, 0, 1)
