"""Faults planted in a folder of images, and what each is to be called."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from PIL import Image

from tests.stages.dataset.pictures import encoded, picture


def bomb() -> bytes:
    content = bytearray(encoded(Image.new("1", (16, 16))))
    content[16:24] = (200_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def plant(raw: Path) -> dict[str, str]:
    """Twelve faults in a folder of cats and dogs; what each is to be called."""
    cat = raw / "cat"
    (cat / "truncated.jpg").write_bytes(encoded(picture(70), "JPEG")[:700])
    (cat / "text.png").write_text("not a picture")
    (cat / "zero.png").touch()
    (cat / "bomb.png").write_bytes(bomb())
    (raw.parent / "outside.png").write_bytes(encoded(picture(71)))
    (cat / "outside.png").symlink_to(raw.parent / "outside.png")
    (cat / "circle").symlink_to(cat)
    (cat / "itself.png").symlink_to(cat / "itself.png")
    (cat / "two\nlines.png").write_bytes(encoded(picture(72)))
    with open(os.fsencode(cat) + b"/caf\xe9.png", "wb") as file:
        file.write(encoded(picture(73)))
    (raw / "empty").mkdir()
    (raw / "loose.png").write_bytes(encoded(picture(74)))
    (raw / "dog/cat.png").write_bytes((cat / "0.png").read_bytes())
    return {
        "cat/truncated.jpg": "broken: ",
        "cat/text.png": "not an image: ",
        "cat/zero.png": "empty: ",
        "cat/bomb.png": "too large: ",
        "cat/outside.png": "link: it points out",
        "cat/circle": "link: it leads to a folder",
        "cat/itself.png": "link: ",
        "cat/two\\nlines.png": "name: ",
        "cat/caf\\xe9.png": "name: ",
        "empty": "empty class: ",
        "loose.png": "no class: ",
        "dog/cat.png": "two labels: the same image is cat as cat/0.png",
    }
