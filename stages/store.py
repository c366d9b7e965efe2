"""Decoded images, kept by content: what was decoded once is never decoded again.

    store = Store(folder, size);  rows = list(store.decode(found));  blocks = store.read(rows)

A folder holds `pixels-*` (records of 3 * size * size bytes, one file per process and run) and `index.jsonl` (one line
per content: where its record lies and its facts, or why it has none). Both only grow; a torn last line is ignored.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.images import BadImage, content_sha256, decode, read_file
from stages.work import StageError, cores

CHUNK = 32  # images per task: small enough for a smooth progress bar, large enough to hide the hand-over
FEW = 8  # chunks that one process does alone


class Found(NamedTuple):
    """One image as a source finds it."""

    path: str  # as the manifest shows it
    label: str
    split: str | None  # None: to be drawn
    content: str | np.ndarray | None  # a file, or uint8 [h,w] or [h,w,3]; None where `reason` says why
    reason: str = ""


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Two runs that share a folder write to it one after the other; the lock dies with its holder."""
    with open(folder / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class Store:
    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.index = _read_index(folder / "index.jsonl")
        self.decoded = 0  # images decoded in this run
        self._shard: tuple[str, Any] = "", None  # the one read last

    def decode(self, found: Iterable[Found], workers: int | None = None) -> Iterator[dict[str, Any]]:
        """One row per image, in order. Pixels do not pass through this process; few images are in flight at once."""
        arguments = (str(self.folder), self.size, set(self.index))
        results = _looked_at(_chunks(found), cores() if workers is None else workers, arguments)
        with open(self.folder / "index.jsonl", "a", encoding="utf-8") as index:
            index.write("\n")  # a torn last line must not swallow the next one
            yield from self._rows(results, index)

    def _rows(self, results: Iterable[list], index: Any) -> Iterator[dict[str, Any]]:
        for chunk in results:
            for _, sha256, entry in chunk:
                if entry is not None and sha256 not in self.index:
                    index.write(json.dumps({"sha256": sha256, **entry}) + "\n")
                    self.index[sha256] = entry
                    self.decoded += 1
            index.flush()
            for found, sha256, _ in chunk:
                yield _row(found, sha256, self.index.get(sha256, {}))

    def read(self, names: Iterable[str], block: int = 256) -> Iterator[np.ndarray]:
        """uint8 [<=block,3,size,size] of the images with these sha256, in this order."""
        names = iter(names)
        while batch := list(islice(names, block)):
            yield self.pixels(batch)

    def pixels(self, names: list[str]) -> np.ndarray:
        return np.stack([self._record(self.index[name]) for name in names])

    def _record(self, entry: dict[str, Any]) -> np.ndarray:
        """Read, not memory-mapped: mapped pages would count as this process's memory."""
        if entry["shard"] != self._shard[0]:
            self._shard = entry["shard"], open(self.folder / entry["shard"], "rb", buffering=0)  # noqa: SIM115
        count = 3 * self.size**2
        content = os.pread(self._shard[1].fileno(), count, entry["record"] * count)
        return np.frombuffer(content, np.uint8).reshape(3, self.size, self.size)


def _chunks(found: Iterable[Found]) -> Iterator[list[Found]]:
    found = iter(found)
    while chunk := list(islice(found, CHUNK)):
        yield chunk


def _looked_at(chunks: Iterator[list[Found]], workers: int, arguments: tuple) -> Iterator[list]:
    first = list(islice(chunks, FEW))
    if len(first) < FEW or workers == 1:  # to start processes would take longer
        _start(*arguments)
        yield from map(_look_at_all, chain(first, chunks))
        return
    # Forked, they have nothing to import; this process has no thread of its own yet (stages.prepare sees to tqdm's).
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _start, arguments) as pool:
        try:
            yield from _ordered(pool, chain(first, chunks), 3 * workers)
        except BrokenProcessPool:
            raise StageError("a decoding process died (out of memory?); what was decoded is kept: run again") from None


def _ordered(pool: Executor, chunks: Iterable[list[Found]], ahead: int) -> Iterator[list]:
    """Like pool.map, without reading the whole input at once."""
    waiting: deque[Future] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(_look_at_all, chunk))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    index = {}
    if path.exists():
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the process died while it wrote this line
            index[entry.pop("sha256")] = entry
    return index


def _row(found: Found, sha256: str, entry: dict[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        k: entry[k] for k in ("phash", "width", "height", "mode", "mean", "std", "bytes") if k in entry
    }
    reason = found.reason or entry.get("reason", "")
    return {"path": found.path, "sha256": sha256, "label": found.label, "split": found.split, **facts, "reason": reason}


# What follows runs in the decoding processes. Each has one place to write to, opened at the first image that is new.

_here: dict[str, Any] = {}


def _start(folder: str, size: int, known: set[str]) -> None:
    _here.update(folder=folder, size=size, known=known, shard=None, count=0)


def _look_at_all(chunk: list[Found]) -> list[tuple[Found, str, dict[str, Any] | None]]:
    return [_look(found) for found in chunk]


def _look(found: Found) -> tuple[Found, str, dict[str, Any] | None]:
    """The image's name, and its index entry where it is new."""
    bare = found._replace(content=None)  # arrays need not travel back
    if found.content is None:
        return bare, "", None
    try:
        content = read_file(found.content) if isinstance(found.content, str) else found.content
    except BadImage as error:
        return bare._replace(reason=str(error)), "", None
    sha256 = content_sha256(content)
    if sha256 in _here["known"]:
        return bare, sha256, None
    _here["known"].add(sha256)
    size = len(content) if isinstance(content, bytes) else content.nbytes
    try:
        pixels, facts = decode(content, _here["size"])
    except BadImage as error:
        return bare, sha256, {"bytes": size, "reason": str(error)}
    return bare, sha256, {**facts, "bytes": size, **_keep(pixels)}


def _keep(pixels: np.ndarray) -> dict[str, Any]:
    if _here["shard"] is None:
        _here["shard"], path = tempfile.mkstemp(prefix="pixels-", dir=_here["folder"])
        _here["name"] = os.path.basename(path)
    _write(_here["shard"], pixels.tobytes())
    _here["count"] += 1
    return {"shard": _here["name"], "record": _here["count"] - 1}


def _write(handle: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
