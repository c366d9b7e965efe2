"""Which test images are attacked: the same number from each class, chosen by hash, so fixed and nobody's choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autolora.data.images import TestImages


def read_images(folder: Path) -> TestImages:
    """Not yet in memory: `stratified` reads those that it chooses."""
    x = np.load(folder / "images.npy", mmap_mode="r")
    return TestImages(x, np.load(folder / "labels.npy"), [i.decode() for i in np.load(folder / "ids.npy").tolist()])


def stratified(images: TestImages, count: int | str, seed: int) -> TestImages:
    """`count` images, or all; classes take turns until enough are chosen, each in the order of its images' hashes.

    Which classes have a last turn the hashes say, too: by number, it would be the first ones in every sample.
    """
    n = len(images) if count == "all" else min(int(count), len(images))
    hashes = _hashes(images.ids, seed)
    chosen = np.lexsort((np.array(hashes), _turns(images.y, hashes)))[:n]
    return images.only(sorted(chosen.tolist(), key=lambda i: images.ids[i]))


def _hashes(ids: Sequence[str], seed: int) -> list[str]:
    return [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in ids]


def _turns(labels: np.ndarray, hashes: list[str]) -> np.ndarray:
    """The place of each image among those of its class."""
    turns, seen = np.zeros(len(labels), dtype=np.int64), dict[int, int]()
    for i in sorted(range(len(hashes)), key=hashes.__getitem__):
        label = int(labels[i])
        turns[i] = seen.get(label, 0)
        seen[label] = seen.get(label, 0) + 1
    return turns


def ids_sha256(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
