"""One image file, or one array, as a square of uint8 pixels and a row of facts; or BadImage with the reason.

What is done on purpose: the EXIF orientation is applied; 16-bit grey is scaled to 8 bits; a palette and CMYK become
RGB; what is transparent lies on white; grey is repeated three times; of an animation the first frame counts; a JPEG
that is not small is decoded at a half of its size (libjpeg's own scaling), or less while twice the stored size remains.

torch resizes (`scaled`), in a quarter of Pillow's time. A plain JPEG is decoded by torchvision, to Pillow's very pixels
in three quarters of its time; where it cannot, Pillow has the word. Whoever decodes many says `with silent():` around
them: decoders warn of metadata, and of damage that they get over, without naming a file.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import decode_jpeg

from autolora.data.pictures import (
    BadImage,
    levels,
    on_white,
    opened,
    orientation,
    refuse_bomb,
    require_pixels,
    scaled,
    to_eight_bits,
)
from stages.dataset.jpeg_header import plain_header

DECODER = 5  # part of the key under which decoded images are kept: raise it when the pixels change
LONGEST = 4  # of a longer image the ends are cut off; stages.validate warns of it
GAP = 3  # an image more than twice so many times too large is averaged down by a whole number first
SMALL = 2**18  # pixels: a JPEG of fewer is decoded whole in less time than Pillow takes for a half of its size


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
    """uint8 [3,size,size]: the short side resized to `size` (bilinear, antialiased), the centre kept; width, height and
    mode of the file."""
    return _decoded(content, size, _square)


def decode_whole(content: bytes | np.ndarray, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """uint8 [3,h,w]: the same with both ends of the long side, up to LONGEST short ones."""
    return _decoded(content, size, _rectangle)


def centre(image: np.ndarray, size: int) -> np.ndarray:
    """What `decode` makes of what `decode_whole` made."""
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


@contextmanager
def silent() -> Iterator[None]:
    """No warnings: Pillow's own, about metadata and sizes well below its limit, and what libjpeg writes to stderr."""
    with warnings.catch_warnings(), _nothing_on_stderr():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
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


def _decoded(
    content: bytes | np.ndarray, size: int, resized: Callable[[Tensor, int], Tensor]
) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        pixels, facts = _plain(content, size) or _any(content, size)
        return resized(pixels, size).numpy(), facts
    except BadImage:
        raise
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise BadImage(f"too large: more than {limit} million pixels; shrink it") from None
    except MemoryError:
        raise NoMemory from None
    except Exception as error:  # a decoder fed with broken bytes raises what it likes
        if "allocate memory" in str(error):  # torch's way to say MemoryError
            raise NoMemory from None
        raise BadImage(f"broken: {_one_line(error)}; restore or remove it") from None


def _plain(content: bytes | np.ndarray, size: int) -> tuple[Tensor, dict[str, Any]] | None:
    """A JPEG that tells nothing but its pixels, without asking Pillow."""
    header = plain_header(content) if isinstance(content, bytes) else None
    if header is None or not _whole(header.width, header.height, size) or (pixels := _from_jpeg(content)) is None:
        return None
    return pixels, header._asdict()


def _whole(width: int, height: int, size: int) -> bool:
    """Whether a JPEG is decoded at its full size."""
    return min(width, height) < 2 * size or width * height <= SMALL


def _from_jpeg(content: bytes | np.ndarray) -> Tensor | None:
    """uint8 [1,h,w] or [3,h,w]; None where Pillow should say what is wrong, or reads it all the same."""
    try:
        return decode_jpeg(torch.frombuffer(content, dtype=torch.uint8))
    except RuntimeError:
        return None


def _any(content: bytes | np.ndarray, size: int) -> tuple[Tensor, dict[str, Any]]:
    image = Image.fromarray(content) if isinstance(content, np.ndarray) else opened(content)
    require_pixels(image)
    if isinstance(content, bytes) and image.format != "JPEG":  # of which no more is decoded than is needed
        refuse_bomb(image, len(content))
    way = orientation(image)
    turned = way in (5, 6, 7, 8) and image.format != "TIFF"  # a quarter; Pillow has turned a TIFF's size
    width, height = image.size[::-1] if turned else image.size
    facts = {"width": width, "height": height, "mode": image.mode}
    if image.format == "JPEG":
        if _whole(*image.size, size):
            upright = way == 1 and image.mode in ("L", "RGB")
            if upright and (pixels := _from_jpeg(content)) is not None:
                return pixels, facts
        else:
            keep = size if min(image.size) < 4 * size else 2 * size  # a half is as good as the whole, less is not
            image.draft(image.mode, (keep, keep))
    if way != 1:
        image = ImageOps.exif_transpose(image)
    return levels(on_white(_reduced(to_eight_bits(image), size))), facts


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
    return _in_colour(scaled(pixels, (min(pixels.shape[1:]),) * 2, (size, size)))


def _rectangle(pixels: Tensor, size: int) -> Tensor:
    """Short side to `size`, the long side in proportion, as torchvision's Resize, but for the ends of the longest:
    [3,h,w]."""
    short = min(pixels.shape[1:])
    height, width = (min(side, LONGEST * short) for side in pixels.shape[1:])
    return _in_colour(scaled(pixels, (height, width), (int(size * height / short), int(size * width / short))))


def _in_colour(pixels: Tensor) -> Tensor:
    return pixels.expand(3, -1, -1).contiguous()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
