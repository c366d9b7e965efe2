"""One image file, or one array, as a square of uint8 pixels and a row of facts; or BadImage with the reason.

What is done on purpose: the EXIF orientation is applied; 16-bit grey is scaled to 8 bits; a palette and CMYK become
RGB; what is transparent lies on white; grey is repeated three times; of an animation the first frame counts; a large
JPEG is decoded at a half of its size (libjpeg's own scaling), or less while twice the stored size remains.

torch resizes: its antialiased bilinear is Pillow's up to one grey level in a pixel of 700, the same bits on every level
of the processor's instructions, and takes a quarter of the time. A plain JPEG is decoded by torchvision, to Pillow's
very pixels in three quarters of its time; where it cannot, Pillow has the word.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor
from torchvision.io import decode_jpeg

DECODER = 4  # part of the key under which decoded images are kept: raise it when the pixels change
# Formats that Pillow decodes by itself, each known by its first bytes: no PostScript, nothing that starts a program.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
WHITE = (255, 255, 255, 255)
LONGEST = 4  # of a longer image the ends are cut off; stages.validate warns of it
GAP = 3  # an image more than twice so many times too large is averaged down by a whole number first
VALUES = np.arange(256)
GREY = torch.tensor([299, 587, 114]).view(3, 1, 1)  # thousandths of red, green and blue (ITU-R 601)
ORIENTATION = 0x0112  # the EXIF tag
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # long comments are no fault of the pixels


class BadImage(Exception):
    """Why an image cannot be used, as `code: what to do`; the code is what stages.validate sorts by."""


class NoMemory(BadImage):
    """That may be another time otherwise: the store does not keep it."""

    def __init__(self) -> None:
        super().__init__("too large: it does not fit into memory; shrink it, or run AUTOLORA_PROCESSES=1 dvc repro")


def read_file(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise BadImage("unreadable: a folder or a device, and no file; name an image")
        with open(path, "rb") as file:
            content = file.read()
    except PermissionError:
        raise BadImage("unreadable: no permission to read it; chmod +r it") from None
    except FileNotFoundError:
        raise BadImage("missing: there is no such file") from None
    except OSError as error:
        raise BadImage(f"unreadable: {error.strerror}") from None
    except MemoryError:
        raise NoMemory from None
    if not content:
        raise BadImage("empty: the file has no bytes; restore or remove it")
    return content


def content_sha256(content: bytes | np.ndarray) -> str:
    """The name of an image: of a file its bytes, of an array its shape and bytes."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256(str(content.shape).encode())
    digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()


def decode(content: bytes | np.ndarray, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 [3,size,size]: the short side resized to `size` (bilinear, antialiased), the centre kept; and the facts."""
    return _decoded(content, size, _square)


def decode_whole(content: bytes | np.ndarray, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 [3,h,w]: the same with both ends of the long side, up to LONGEST short ones; the facts are the centre's."""
    return _decoded(content, size, _rectangle)


def _decoded(
    content: bytes | np.ndarray, size: int, resized: Callable[[Tensor, int], Tensor]
) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about sizes well below Pillow's own limit
            image, facts = _open(content, size)
            pixels = resized(_pixels(content, image, facts, size), size)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise BadImage(f"too large: more than {limit} million pixels; shrink it") from None
    except UnidentifiedImageError:
        raise BadImage("not an image: no format that is read here; convert it to JPEG or PNG, or remove it") from None
    except MemoryError:
        raise NoMemory from None
    except Exception as error:  # a decoder fed with broken bytes raises what it likes
        if "allocate memory" in str(error):  # torch's way to say MemoryError
            raise NoMemory from None
        raise BadImage(f"broken: {_one_line(error)}; restore or remove it") from None
    return pixels.numpy(), facts | _statistics(_centre(pixels, size))


def _statistics(square: Tensor) -> dict[str, Any]:
    """Mean and deviation from the counts of each value: exact, and quicker than from the pixels."""
    counts = square.flatten().bincount(minlength=256).numpy()
    mean = float(counts @ VALUES / counts.sum())
    deviation = float(np.sqrt(counts @ (VALUES - mean) ** 2 / counts.sum()))
    return {"mean": round(mean, 2), "std": round(deviation, 2), "phash": dhash(square)}


def _open(content: bytes | np.ndarray, size: int) -> tuple[Image.Image, dict[str, Any]]:
    image = Image.fromarray(content) if isinstance(content, np.ndarray) else _from_bytes(content)
    width, height = image.size
    if not width or not height:
        raise BadImage("broken: it has no pixels; restore or remove it")
    orientation = _orientation(image)
    if orientation in (5, 6, 7, 8) and image.format != "TIFF":  # a quarter turn; Pillow has turned a TIFF's size
        width, height = height, width
    facts = {"width": width, "height": height, "mode": image.mode}
    if image.format == "JPEG":
        keep = size if min(image.size) < 4 * size else 2 * size  # a half is as good as the whole, less is not
        image.draft(image.mode, (keep, keep))
    if orientation != 1:
        image = ImageOps.exif_transpose(image)
    return image, facts


def _pixels(content: bytes | np.ndarray, image: Image.Image, facts: dict[str, Any], size: int) -> Tensor:
    """uint8 [1,h,w] or [3,h,w]."""
    if image.format == "JPEG" and image.mode in ("L", "RGB") and image.size == (facts["width"], facts["height"]):
        try:  # whole and upright
            with _silent():
                return decode_jpeg(torch.frombuffer(content, dtype=torch.uint8))
        except RuntimeError:  # Pillow says what is wrong, or reads it all the same
            pass
    levels = np.asarray(_on_white(_reduced(_to_eight_bits(image), size)))
    return torch.from_numpy(levels.reshape(*levels.shape[:2], -1)).permute(2, 0, 1)


@contextmanager
def _silent() -> Iterator[None]:
    """libjpeg warns of damage that it gets over on stderr, without a name."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is none
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _orientation(image: Image.Image) -> int:
    if image.format == "JPEG" and "exif" not in image.info:
        return 1
    if image.format not in ("JPEG", "TIFF"):
        image.load()  # in a PNG the EXIF may stand behind the pixels; whether these are whole is no question of EXIF
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF in a PNG or WebP raises what it likes; the pixels are whole
        return 1


def _from_bytes(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF, for one, is not in every build


def _to_eight_bits(image: Image.Image) -> Image.Image:
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


def _reduced(image: Image.Image, size: int) -> Image.Image:
    """Far too long, it loses its ends; far too large, it is averaged down by a whole number, which loses less than an
    output pixel at the edges."""
    longest, times = LONGEST * min(image.size), min(image.size) // (GAP * size)
    if max(image.size) > longest:
        left, top = (max(side - longest, 0) // 2 for side in image.size)
        image = image.crop((left, top, image.width - left, image.height - top))
    if times < 2:
        return image
    width, height = (side - side % times for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.reduce(times, (left, top, left + width, top + height))


def _square(pixels: Tensor, size: int) -> Tensor:
    """Short side to `size` and centre crop, in one step: [3,size,size]."""
    return _resized(pixels, min(pixels.shape[1:]), size)


def _rectangle(pixels: Tensor, size: int) -> Tensor:
    """Short side to `size`, the long side in proportion, as torchvision's Resize: [3,h,w]."""
    return _resized(pixels, LONGEST * min(pixels.shape[1:]), size)


def _resized(pixels: Tensor, longest: int, size: int) -> Tensor:
    """The middle `longest` of the long side, its short side at `size`: bilinear, antialiased."""
    height, width = (min(side, longest) for side in pixels.shape[1:])
    shape = tuple(int(size * side / min(height, width)) for side in (height, width))
    pixels = _middle(pixels, height, width)
    if pixels.shape[1:] != shape:
        pixels = F.interpolate(pixels[None], shape, mode="bilinear", antialias=True)[0]
    return pixels.expand(3, -1, -1).contiguous()


def _middle(pixels: Tensor, height: int, width: int) -> Tensor:
    """A line more where the middle is none: half a pixel at both edges is less than half a pixel everywhere."""
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    return pixels[:, top : pixels.shape[1] - top, left : pixels.shape[2] - left]


def _centre(pixels: Tensor, size: int) -> Tensor:
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image).convert("RGB")


def dhash(square: Tensor) -> str:
    """256 bits: is each of 16 x 16 places brighter than its left neighbour, by a whole grey level? As 64 hex digits."""
    small = F.interpolate(square[None], (16, 17), mode="bilinear", antialias=True)[0]
    grey = ((small * GREY).sum(0) + 500).numpy() // 1000  # finer, a flat background's noise would count
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
