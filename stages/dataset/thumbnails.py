"""Small pictures of prepared images, found by the path that the manifest gives them.

seen = Thumbnails(manifest);  seen("cat/7.png")     # a PNG as data URI, or None where the image was not prepared

They are for people to look at: nothing is decided on them, so no stage depends on the images for their sake.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from stages.dataset.splits import SPLITS

LARGEST = 128  # pixels a side


class Thumbnails:
    def __init__(self, manifest: pd.DataFrame, folder: Path = Path("data/prepared")) -> None:
        self.folder = folder
        self.opened: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]] = {}
        self.ids = dict(zip(manifest["path"], manifest["sha256"]))
        self.places = {
            identity.decode(): (split, row)
            for split in SPLITS
            for row, identity in enumerate(_loaded(folder / split / "ids.npy", np.zeros(0, "S64")).tolist())
        }

    def __call__(self, path: str) -> str | None:
        place = self.places.get(self.ids.get(path, ""))
        if place is None:
            return None
        picture = Image.fromarray(np.ascontiguousarray(self._pixels(*place).transpose(1, 2, 0)))
        picture.thumbnail((LARGEST, LARGEST))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _pixels(self, split: str, row: int) -> np.ndarray:
        """[3,h,w]; images that were kept whole lie one after the other."""
        if split not in self.opened:
            self.opened[split] = _images(self.folder / split)
        images, begins, shapes = self.opened[split]
        if shapes is None:
            return np.asarray(images[row])
        height, width = shapes[row]
        return np.asarray(images[begins[row] : begins[row] + 3 * height * width]).reshape(3, height, width)


def _images(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    images = np.load(folder / "images.npy", mmap_mode="r")
    if not (folder / "shapes.npy").exists():
        return images, np.zeros(0, int), None
    shapes = np.load(folder / "shapes.npy")
    sizes = 3 * shapes.astype(np.int64).prod(1)
    return images, sizes.cumsum() - sizes, shapes


def _loaded(path: Path, otherwise: np.ndarray) -> np.ndarray:
    return np.load(path) if path.is_file() else otherwise
