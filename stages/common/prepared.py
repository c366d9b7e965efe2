"""The parts of data/prepared as `prepare` leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autolora.common.files import file_sha256
from autolora.data.ragged import Rectangles, rectangles

PREPARED = Path("data/prepared")


def read_split(name: str) -> tuple[np.ndarray | Rectangles, np.ndarray]:
    """Images as they lie in their file, mapped: squares, or with shapes.npy beside them rectangles."""
    folder = PREPARED / name
    images, labels = np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")
    shapes = folder / "shapes.npy"
    return rectangles(images, np.load(shapes)) if shapes.exists() else images, labels


def data_keys(*parts: str) -> dict[str, str]:
    """What the images are, without reading them: ids are hashes of their content."""
    return {
        f"{part}/{file}": file_sha256(PREPARED / part / file) for part in parts for file in ("ids.npy", "labels.npy")
    }
