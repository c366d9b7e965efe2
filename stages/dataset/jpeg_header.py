"""What a JPEG file says of itself before its pixels, where that is quickly told.

    header = plain_header(content)      # Header(width, height, mode), or None: ask Pillow

Pillow's reading of a header takes as long as decoding a thumbnail's pixels. Plain is a file whose segments say nothing
that changes what is seen: no EXIF (it may be turned), no Adobe segment (its colours may be others), no second picture.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

FRAMES = {0xC0, 0xC2}  # baseline and progressive
TABLES = {0xC4, 0xDB, 0xDD}
REMARKS = {0xE0, 0xED, 0xFE}  # JFIF, Photoshop's, comments
SCAN = 0xDA  # the pixels begin
MODES = {1: "L", 3: "RGB"}


class Header(NamedTuple):
    width: int
    height: int
    mode: str


def plain_header(content: bytes) -> Header | None:
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    at, found = 2, None
    while at + 10 < len(content) and content[at] == 0xFF:
        kind, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if kind == SCAN:
            return found
        if kind in FRAMES:
            found = _frame(content[at + 4 : at + 10])
        elif kind not in TABLES and kind not in REMARKS:
            return None
        at += 2 + length
    return None


def _frame(begin: bytes) -> Header | None:
    """Bits of a level, height, width, number of colours."""
    height, width = int.from_bytes(begin[1:3]), int.from_bytes(begin[3:5])
    known = begin[0] == 8 and begin[5] in MODES
    if known and 0 < width * height <= (Image.MAX_IMAGE_PIXELS or 0):
        return Header(width, height, MODES[begin[5]])
    return None
