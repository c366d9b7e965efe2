"""Which test images are attacked: the same number from each class, chosen by hash, so fixed and nobody's choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    x: np.ndarray  # uint8 [n,3,h,w]
    y: np.ndarray  # int64 [n]
    ids: list[str]


def read_images(folder: Path) -> Images:
    x = np.load(folder / "images.npy", mmap_mode="r")
    return Images(x, np.load(folder / "labels.npy"), [i.decode() for i in np.load(folder / "ids.npy").tolist()])


def stratified(images: Images, count: int | str, seed: int) -> Images:
    """`count` images, or all; classes take turns until enough are chosen, each in the order of its images' hashes."""
    n = len(images.ids) if count == "all" else min(int(count), len(images.ids))
    ranks = _ranks(images.y, _hashes(images.ids, seed))
    chosen = sorted(np.lexsort((images.y, ranks))[:n].tolist(), key=lambda i: images.ids[i])
    return Images(np.asarray(images.x[chosen]), images.y[chosen], [images.ids[i] for i in chosen])


def _hashes(ids: Sequence[str], seed: int) -> list[str]:
    return [hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in ids]


def _ranks(labels: np.ndarray, hashes: list[str]) -> np.ndarray:
    """The place of each image among those of its class."""
    ranks, seen = np.zeros(len(labels), dtype=np.int64), dict[int, int]()
    for i in sorted(range(len(hashes)), key=hashes.__getitem__):
        label = int(labels[i])
        ranks[i] = seen.get(label, 0)
        seen[label] = seen.get(label, 0) + 1
    return ranks


def ids_sha256(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
