"""Decoded images, kept by content: what was decoded once is never decoded again.

    store = Store(folder, size);  rows = list(store.decode(found));  images = store.read(names)

A folder holds `pixels-*` (images as [3,h,w], one after the other; one file per process and run) and `index.jsonl` (one
line per content: where its pixels lie and its facts, or why it has none). Both only grow; a torn last line is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from autolora.common.files import locked, naming
from stages.common.errors import StageError
from stages.dataset.decode import centre, decode
from stages.dataset.decoding_pool import Decode, Look, Looked, looked_at
from stages.dataset.found import Found


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Two runs that share a folder write to it one after the other; the lock dies with its holder."""
    with locked(folder / "lock", wait=True):
        yield


class Store:
    """`decoder` makes squares of `size`, or with decode_whole rectangles whose short side that is."""

    def __init__(self, folder: Path, size: int, decoder: Decode = decode) -> None:
        self.folder, self.size, self.decoder = folder, size, decoder
        self.index = _read_index(folder / "index.jsonl")
        self.decoded = 0  # images decoded in this run
        self._shard: tuple[str, Any] = "", None  # the one read last

    def decode(self, found: Iterable[Found], workers: int = 1) -> Iterator[dict[str, Any]]:
        """One row per image, in order. Pixels do not pass through this process; few images are in flight at once."""
        known = set(self.index)
        results = looked_at(found, workers, folder=self.folder, size=self.size, decode=self.decoder, known=known)
        path = self.folder / "index.jsonl"
        with naming(path), open(path, "a", encoding="utf-8") as index:
            index.write("\n")  # a torn last line must not swallow the next one
            yield from self._rows(results, index)

    def _rows(self, results: Iterable[Looked], index: IO[str]) -> Iterator[dict[str, Any]]:
        for chunk, looks in results:
            for look in looks:
                if look.entry is not None and look.sha256 not in self.index:
                    index.write(json.dumps({"sha256": look.sha256, **look.entry}) + "\n")
                    self.index[look.sha256] = look.entry
                    self.decoded += 1
            index.flush()
            for found, look in zip(chunk, looks):
                yield _row(found, look, self.index.get(look.sha256, {}))

    def read(self, names: Iterable[str]) -> Iterator[np.ndarray]:
        """uint8 [3,h,w] of the images with these sha256, in this order."""
        return (self._record(self.index[name]) for name in names)

    def squares(self, names: Sequence[str], size: int) -> np.ndarray:
        """uint8 [n,3,size,size]: the middle of each."""
        found = np.empty((len(names), 3, size, size), np.uint8)
        for square, name in zip(found, names):
            self._fill(square, self.index[name])
        return found

    def pixels(self, names: Sequence[str]) -> np.ndarray:
        return self.squares(names, self.size)

    def shapes(self, names: Iterable[str]) -> np.ndarray:
        """int64 [n,2]: height and width of what is kept."""
        return np.array([self.index[name]["shape"] for name in names], np.int64).reshape(-1, 2)

    def _fill(self, square: np.ndarray, entry: dict[str, Any]) -> None:
        if entry["shape"] == list(square.shape[1:]):
            self._read_into(square, entry)
        else:
            square[:] = centre(self._record(entry), square.shape[-1])

    def _record(self, entry: dict[str, Any]) -> np.ndarray:
        image = np.empty((3, *entry["shape"]), np.uint8)
        self._read_into(image, entry)
        return image

    def _read_into(self, image: np.ndarray, entry: dict[str, Any]) -> None:
        if os.preadv(self._opened(entry["shard"]), [image.data], entry["offset"]) < image.nbytes:
            raise StageError(f"{self.folder / entry['shard']} has become shorter: run again, what is lost is decoded")

    def _opened(self, shard: str) -> int:
        """Read, not memory-mapped: mapped pages would count as this process's memory."""
        if shard != self._shard[0]:
            self._shard = shard, open(self.folder / shard, "rb", buffering=0)  # noqa: SIM115
        return self._shard[1].fileno()


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    index = {}
    if path.exists():
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the process died while it wrote this line
            index[entry.pop("sha256")] = entry
    sizes = {shard.name: shard.stat().st_size for shard in path.parent.glob("pixels-*")}
    return {name: entry for name, entry in index.items() if _is_there(entry, sizes)}


def _is_there(entry: dict[str, Any], sizes: dict[str, int]) -> bool:
    """Pixels that a lost disk cache, or somebody, took away are decoded again."""
    if "shard" not in entry:
        return True
    height, width = entry["shape"]
    return entry["offset"] + 3 * height * width <= sizes.get(entry["shard"], 0)


def _row(found: Found, look: Look, entry: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        k: entry[k] for k in ("phash", "width", "height", "mode", "mean", "std", "bytes") if k in entry
    }
    known = {"path": found.path, "sha256": look.sha256, "label": found.label, "split": found.split}
    return known | facts | {"reason": found.reason or look.reason or entry.get("reason", "")}
