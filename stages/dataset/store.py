"""Decoded images, kept by content: what was decoded once is never decoded again.

    store = Store(folder, size);  rows = list(store.decode(found));  images = store.read(names)

A folder holds `pixels-*` (images as [3,h,w], one after the other; one file per process and run) and `index.jsonl` (one
line per content: where its pixels lie and its facts, or why it has none). Both only grow; a torn last line is ignored.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from autolora.common.files import locked, naming
from stages.common.runner import StageError
from stages.dataset.decode import BadImage, NoMemory, centre, content_sha256, decode, read_file, silent
from stages.dataset.image_statistics import described

CHUNK = 16  # images per task: few enough to keep all processes busy to the end, enough to hide the hand-over
FEW = 6  # chunks that one process does alone


class Found(NamedTuple):
    """One image as a source finds it."""

    path: str  # as the manifest shows it
    label: str
    split: str | None  # None: to be drawn
    content: str | np.ndarray | None  # a file, or uint8 [h,w] or [h,w,3]; None where `reason` says why
    reason: str = ""


class Look(NamedTuple):
    """What a decoding process tells of it."""

    sha256: str = ""
    entry: dict[str, Any] | None = None  # of the index, where it is new
    reason: str = ""  # why there is none, and the next run asks again


Looked = tuple[list[Found], list[Look]]


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Two runs that share a folder write to it one after the other; the lock dies with its holder."""
    with locked(folder / "lock", wait=True):
        yield


Decode = Callable[[bytes | np.ndarray, int], tuple[np.ndarray, dict[str, Any]]]


class Store:
    """`decoder` makes squares of `size`, or with decode_whole rectangles whose short side that is."""

    def __init__(self, folder: Path, size: int, decoder: Decode = decode) -> None:
        self.folder, self.size, self.decoder = folder, size, decoder
        self.index = _read_index(folder / "index.jsonl")
        self.decoded = 0  # images decoded in this run
        self._shard: tuple[str, Any] = "", None  # the one read last

    def decode(self, found: Iterable[Found], workers: int = 1) -> Iterator[dict[str, Any]]:
        """One row per image, in order. Pixels do not pass through this process; few images are in flight at once."""
        arguments = (str(self.folder), self.size, self.decoder, set(self.index))
        results = _looked_at(_chunks(found), workers, arguments)
        path = self.folder / "index.jsonl"
        with naming(path), open(path, "a", encoding="utf-8") as index:
            index.write("\n")  # a torn last line must not swallow the next one
            yield from self._rows(results, index)

    def _rows(self, results: Iterable[Looked], index: Any) -> Iterator[dict[str, Any]]:
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


def _chunks(found: Iterable[Found]) -> Iterator[list[Found]]:
    found = iter(found)
    while chunk := list(islice(found, CHUNK)):
        yield chunk


def _looked_at(chunks: Iterator[list[Found]], workers: int, arguments: tuple) -> Iterator[Looked]:
    first = list(islice(chunks, FEW))
    if len(first) < FEW or workers == 1:  # to start processes would take longer
        _start(*arguments)
        yield from ((chunk, _look_at_all(chunk)) for chunk in chain(first, chunks))
        return
    # Forked, they have nothing to import; this process has no thread of its own yet (stages.prepare sees to tqdm's).
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    under_way(Path(arguments[0]))  # notes of a run that was killed whole
    with ProcessPoolExecutor(workers, context, _start_beside, arguments) as pool:
        try:
            yield from _ordered(pool, chain(first, chunks), 3 * workers)
        except BrokenProcessPool:
            raise StageError(_killed(under_way(Path(arguments[0])))) from None
        finally:
            under_way(Path(arguments[0]))


def under_way(folder: Path) -> list[str]:
    """What each decoding process was at; its note is removed."""
    found = []
    for note in sorted(folder.glob("at-*")):
        found.append(note.read_bytes().split(b"\n")[0].decode("utf-8", "replace"))  # a path may lie over a longer one
        note.unlink()
    return list(filter(None, found))


def _killed(paths: list[str]) -> str:
    return (
        "a decoding process was killed, probably for lack of memory, at one of these images:\n"
        + "".join(f"  {path}\n" for path in paths)
        + "What was decoded before is kept. Shrink or remove the image, or run again with fewer processes at a time "
        "(AUTOLORA_PROCESSES=1 dvc repro)."
    )


def _ordered(pool: Executor, chunks: Iterable[list[Found]], ahead: int) -> Iterator[Looked]:
    """Like pool.map, without reading the whole input at once."""
    waiting: deque[tuple[list[Found], Future]] = deque()
    for chunk in chunks:
        waiting.append((chunk, pool.submit(_look_at_all, chunk)))
        if len(waiting) >= ahead:
            yield _first(waiting)
    while waiting:
        yield _first(waiting)


def _first(waiting: deque[tuple[list[Found], Future]]) -> Looked:
    chunk, looks = waiting.popleft()
    return chunk, looks.result()


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


# What follows runs in the decoding processes. Each has one place to write to, opened at the first image that is new.

_here: dict[str, Any] = {}


def _start(folder: str, size: int, decode: Decode, known: set[str]) -> None:
    _here.update(folder=folder, size=size, decode=decode, known=known, shard=None, offset=0, note=None)


def _start_beside(*arguments: Any) -> None:
    """In a process of several: who is killed can say nothing, so it notes what it is at."""
    torch.set_num_threads(1)  # a forked process has none of its parent's threads, and would wait for them
    _start(*arguments)
    _here["note"] = os.open(Path(arguments[0]) / f"at-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)


def _look_at_all(chunk: list[Found]) -> list[Look]:
    with silent():
        looked = [_look(found) for found in chunk]
    new = [(look.entry, image) for look, image in looked if look.entry is not None and image is not None]
    if new:
        entries, images = zip(*new)
        facts = described([centre(image, _here["size"]) for image in images])
        for entry, facts_of_one, place in zip(entries, facts, _keep(images)):
            entry.update(facts_of_one | place)
    _note("")
    return [look for look, _ in looked]


def _note(path: str) -> None:
    if _here["note"] is not None:
        os.pwrite(_here["note"], f"{path}\n".encode(), 0)


def _look(found: Found) -> tuple[Look, np.ndarray | None]:
    """The image's name, what its file says, and its pixels where it is new."""
    if found.content is None:
        return Look(), None
    _note(found.path)
    try:
        content = read_file(found.content) if isinstance(found.content, str) else found.content
    except BadImage as error:
        return Look(reason=str(error)), None
    sha256 = content_sha256(content)
    if sha256 in _here["known"]:
        return Look(sha256), None
    _here["known"].add(sha256)
    size = len(content) if isinstance(content, bytes) else content.nbytes
    try:
        pixels, facts = _here["decode"](content, _here["size"])
    except NoMemory as error:
        _here["known"].discard(sha256)  # a copy of it is looked at too
        return Look(sha256, reason=str(error)), None
    except BadImage as error:
        return Look(sha256, {"bytes": size, "reason": str(error)}), None
    return Look(sha256, {**facts, "bytes": size}), pixels


def _keep(images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Write them one after the other; where each lies."""
    if _here["shard"] is None:
        _here["shard"], path = tempfile.mkstemp(prefix="pixels-", dir=_here["folder"])
        _here["name"] = os.path.basename(path)
    places = []
    with naming(f"{_here['folder']}/{_here['name']}"):
        for pixels in images:
            _write(_here["shard"], pixels)
            places.append({"shard": _here["name"], "offset": _here["offset"], "shape": list(pixels.shape[1:])})
            _here["offset"] += pixels.nbytes
    return places


def _write(handle: int, pixels: np.ndarray) -> None:
    view = pixels.data.cast("B")
    while view:
        view = view[os.write(handle, view) :]
