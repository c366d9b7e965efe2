"""The same image twice: which copies are left out, and which images nearly are the same across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from stages.dataset.splits import SPLITS

BITS, BANDS = 256, 16
DISTANCE = BANDS - 1  # at most so many bits differ: then at least one band is the same in both
COMPARISONS = 2000  # per image, at most
CORRELATION = 0.99  # of the pixels, at 32 x 32 or less
PARTNERS = 8  # nearest candidates of an image whose pixels are compared


def leave_out_copies(rows: Iterable[dict[str, Any]]) -> None:
    """Give a reason to every row that must not reach training: see `_judge`. Works in place."""
    copies = defaultdict(list)
    for row in rows:
        if not row["reason"]:
            copies[row["sha256"]].append(row)
    for group in copies.values():
        if len(group) > 1:
            _judge(group)


def _judge(group: list[dict[str, Any]]) -> None:
    """Under two labels: nobody knows which is right, all are left out. In two splits: the copy that is furthest from
    training stays, so that the test part is what its authors made it. Else the first stays."""
    if len({row["label"] for row in group}) > 1:
        for row in group:
            other = next(r for r in group if r["label"] != row["label"])
            row["reason"] = f"two labels: the same image is {other['label']} as {other['path']}; keep the right one"
        return
    stays = max(group, key=lambda row: SPLITS.index(row["split"]))
    for row in group:
        if row is not stays and row["split"] != stays["split"]:
            row["reason"] = f"two splits: the same image is in {stays['split']} as {stays['path']}; remove one"
        elif row is not stays and row["path"] == stays["path"]:
            row["reason"] = "listed twice: the table has the row again; remove one"
        elif row is not stays:
            row["reason"] = f"repeated: the same image as {stays['path']}; remove one"


def near_duplicates(
    phashes: list[str], splits: list[str], pixels: Callable[[np.ndarray], np.ndarray]
) -> dict[int, int]:
    """For images of val and test: which image nearer to training looks the same, though its bytes differ.

    Candidates agree in all but 15 of 256 bits of their hashes; `pixels` (indices -> uint8 [n,3,s,s]) decides.
    """
    hashes = np.array([np.frombuffer(bytes.fromhex(h), np.uint8) for h in phashes]).reshape(-1, BITS // 8)
    place = np.array([SPLITS.index(split) for split in splits])
    found: dict[int, int] = {}
    for side in (1, 2):
        left, right = np.flatnonzero(place == side), np.flatnonzero(place < side)
        pairs = _nearest(*candidates(hashes, left, right))
        found |= _alike(pairs, pixels)
    return found


def candidates(hashes: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (left, right) within DISTANCE, and their distances, without comparing all with all.

    The bits are cut into 16 bands; two hashes that differ in at most 15 bits agree in at least one (pigeonholes), so it
    is enough to look at those that share a band. Neighbouring bits are scattered over the bands: what many images have
    in common (a black border) would else make one band the same in all.
    """
    order = np.random.default_rng(0).permutation(BITS)
    scattered = np.packbits(np.unpackbits(hashes, axis=1)[:, order], axis=1)
    bands = np.ascontiguousarray(scattered).view(np.uint16).T  # [16,n]
    words = hashes.view(np.uint64)  # [n,4]
    sorted_right = [right[np.argsort(band[right], kind="stable")] for band in bands]
    begin, count = _ranges(bands, left, sorted_right)
    count *= _affordable(count)
    pairs, distances = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for rows, first, n in zip(sorted_right, begin, count):
        for a, b in _sharing(left, rows, first, n):
            distance = np.bitwise_count(words[a] ^ words[b]).sum(1, dtype=np.int64)
            near = distance <= DISTANCE
            pairs.append(np.stack([a[near], b[near]], 1))
            distances.append(distance[near])
    unique, where = np.unique(np.concatenate(pairs), axis=0, return_index=True)
    return unique, np.concatenate(distances)[where]


def _ranges(bands: np.ndarray, left: np.ndarray, sorted_right: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each band and left image: where in the sorted right images its value begins, and how many have it."""
    begin = np.stack([np.searchsorted(b[rows], b[left], "left") for b, rows in zip(bands, sorted_right)])
    end = np.stack([np.searchsorted(b[rows], b[left], "right") for b, rows in zip(bands, sorted_right)])
    return begin, end - begin


def _affordable(count: np.ndarray) -> np.ndarray:
    """The rarest values first, until an image has COMPARISONS candidates: near images share several bands, and of a
    value that thousands have nothing is learnt. This is what keeps drawings and digits from comparing all with all."""
    order = np.argsort(count, axis=0, kind="stable")
    spent = np.cumsum(np.take_along_axis(count, order, 0), axis=0)
    allowed = np.empty(count.shape, bool)
    np.put_along_axis(allowed, order, spent <= COMPARISONS, 0)
    return allowed


def _sharing(
    left: np.ndarray, rows: np.ndarray, begin: np.ndarray, count: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of one band, a million or two at a time."""
    step = max(1, 2_000_000 // max(1, int(count.max(initial=0))))
    for at in range(0, len(left), step):
        some = slice(at, at + step)
        n = count[some]
        offset = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        yield np.repeat(left[some], n), rows[np.repeat(begin[some], n) + offset]


def _nearest(pairs: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Of each left image at most PARTNERS pairs, the nearest."""
    order = np.lexsort((pairs[:, 1], distances, pairs[:, 0]))
    pairs = pairs[order]
    start = np.searchsorted(pairs[:, 0], pairs[:, 0], "left")
    return pairs[np.arange(len(pairs)) - start < PARTNERS]


def _alike(pairs: np.ndarray, pixels: Callable[[np.ndarray], np.ndarray], block: int = 256) -> dict[int, int]:
    found: dict[int, int] = {}
    for at in range(0, len(pairs), block):
        some = pairs[at : at + block]
        a, b = (_standard(pixels(side)) for side in some.T)
        for (left, right), alike in zip(some.tolist(), (a * b).mean(1) > CORRELATION):
            if alike:
                found.setdefault(left, right)
    return found


def _standard(images: np.ndarray) -> np.ndarray:
    """float [n,d] of mean 0 and deviation 1, after averaging down to at most 32 pixels a side."""
    n, _, size, _ = images.shape
    step = -(-size // 32)
    cut = size // step * step
    means = images[:, :, :cut, :cut].reshape(n, 3, cut // step, step, cut // step, step).mean((3, 5)).reshape(n, -1)
    means -= means.mean(1, keepdims=True)
    return means / (means.std(1, keepdims=True) + 1e-6)
