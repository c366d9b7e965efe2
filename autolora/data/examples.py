"""The adversarial examples that `evaluate` stores: one format, with its writer and its reader.

examples = read_examples("models/adversarial.npz");   examples.images.x, examples.adversarial, examples.found
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autolora.common.files import replacing
from autolora.data.images import TestImages


class Examples(NamedTuple):
    """The images that were attacked, and what the attack made of them."""

    images: TestImages
    adversarial: np.ndarray  # float32 [n,3,h,w]; the image itself where none was found
    found: np.ndarray  # bool [n]


def read_examples(path: str | Path) -> Examples:
    with np.load(path, allow_pickle=False) as data:
        ids = [i.decode() if isinstance(i, bytes) else str(i) for i in data["ids"].tolist()]
        images = TestImages(data["x"], data["y"], ids)
        return Examples(images, data["adversarial"].astype(np.float32, copy=False), data["found"])


def id_column(ids: Sequence[str]) -> np.ndarray:
    """As bytes: hashes of 64 letters, or whatever a caller names images by."""
    names = [i.encode() for i in ids]
    return np.array(names, f"S{max(64, *map(len, names), 0)}")


def magnified(clean: np.ndarray, adversarial: np.ndarray) -> tuple[np.ndarray, float]:
    """The perturbation around grey, stretched until its largest value is full scale, and by how much."""
    offset = adversarial - clean
    largest = float(np.abs(offset).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    return 0.5 + factor * offset, factor


def write_examples(path: str | Path, examples: Examples, threat: str) -> None:
    """With all that a reader needs to judge them: no other file."""
    images, adversarial, found = examples
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(
            file,
            x=images.x,
            adversarial=adversarial,
            y=images.y,
            ids=id_column(images.ids),
            found=found,
            threat=np.array(threat),
        )
