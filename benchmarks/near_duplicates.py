"""Near-duplicates: how long the search takes, and which changed copies it finds.

python -m benchmarks.near_duplicates FOLDER --size 64        # FOLDER: CLASS/IMAGE
"""

from __future__ import annotations

import io
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from autolora.common.command_line import Command
from stages.dataset.decode import decode, read_file
from stages.dataset.duplicates import near_duplicates
from stages.dataset.folders import folder
from stages.dataset.image_statistics import described


def main() -> None:
    parser = Command(__doc__, reads="FOLDER/CLASS/IMAGE", writes="figures on stdout")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=100)
    arguments = parser.parse_args()
    for shared in (0, 64):
        print(f"100,000 hashes with {shared} bits in common: {search_seconds(100_000, shared):.1f} s")
    found = [f.content for f in folder(arguments.folder) if isinstance(f.content, str)]
    chosen = np.random.default_rng(0).permutation(len(found))[: arguments.images]
    for name, share in recall([read_file(found[i]) for i in chosen], arguments.size).items():
        print(f"{name:22} {100 * share:3.0f} % of {len(chosen)} found")


def search_seconds(n: int, common: int) -> float:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (n, 256), np.uint8)
    bits[:, :common] = 0
    bits[:, common : 3 * common] &= rng.random((n, 2 * common)) < 0.2
    hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
    splits = rng.choice(["train", "val", "test"], n, p=[0.76, 0.04, 0.2]).tolist()
    start = time.perf_counter()
    near_duplicates(hashes, splits, lambda some: np.zeros((len(some), 3, 8, 8), np.uint8))
    return time.perf_counter() - start


def rows(pixels: np.ndarray, some: np.ndarray) -> np.ndarray:
    return pixels[some]


def recall(contents: list[bytes], size: int) -> dict[str, float]:
    """Of each kind of copy the share traced to its original: all originals in training, all copies in test."""
    originals = [decode(content, size)[0] for content in contents]
    changed = [copies(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]
    shares = {}
    for name in changed[0]:
        pixels = np.stack(originals + [decode(kinds[name], size)[0] for kinds in changed])
        splits = ["train"] * len(contents) + ["test"] * len(contents)
        found = near_duplicates([f["phash"] for f in described(list(pixels))], splits, partial(rows, pixels))
        shares[name] = sum(found.get(len(contents) + i) == i for i in range(len(contents))) / len(contents)
    return shares


def copies(image: Image.Image) -> dict[str, bytes]:
    width, height = image.size
    edge_x, edge_y = width // 50, height // 50
    return {
        "as PNG": _saved(image, "PNG"),
        "JPEG, quality 60": _saved(image, "JPEG", quality=60),
        "smaller by a fifth": _saved(image.resize((width * 4 // 5, height * 4 // 5), Image.Resampling.BICUBIC), "PNG"),
        "brighter by 15 %": _saved(ImageEnhance.Brightness(image).enhance(1.15), "PNG"),
        "cropped by 2 % a side": _saved(image.crop((edge_x, edge_y, width - edge_x, height - edge_y)), "PNG"),
        "mirrored": _saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"),
    }


def _saved(image: Image.Image, form: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
