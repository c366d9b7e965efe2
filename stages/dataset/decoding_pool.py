"""Many images, decoded by as many processes as one likes; pixels stay on the side of who decodes.

    for chunk, looks in looked_at(found, workers, folder=folder, size=32, decode=decode, known=set()): ...

Each process writes the pixels to a file of its own in `folder` and hands back where they lie. Few images are decoded
in this process: to start others would take longer.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from autolora.common.files import naming
from autolora.common.processes import end_with_parent
from stages.common.errors import StageError
from stages.dataset.decode import BadImage, NoMemory, centre, content_sha256, read_file, silent
from stages.dataset.found import Found
from stages.dataset.image_statistics import described

CHUNK = 16  # images per task: few enough to keep all processes busy to the end, enough to hide the hand-over
FEW = 6  # chunks that one process does alone
Decode = Callable[[bytes | np.ndarray, int], tuple[np.ndarray, dict[str, Any]]]


class Look(NamedTuple):
    """What a decoding process tells of one image."""

    sha256: str = ""
    entry: dict[str, Any] | None = None  # of the index, where it is new
    reason: str = ""  # why there is none, and the next run asks again


Looked = tuple[list[Found], list[Look]]


class Decoder:
    """One process's: what it decodes, which images it knows, and the one file that it writes pixels to."""

    def __init__(self, folder: Path, size: int, decode: Decode, known: set[str]) -> None:
        self.folder, self.size, self.decode, self.known = folder, size, decode, known
        self.shard: Shard | None = None  # opened at the first image that is new
        self.note: int | None = None

    def leave_notes(self) -> None:
        """Who is killed can say nothing, so in a process of several it notes what it is at."""
        self.note = os.open(self.folder / f"at-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def look_at_all(self, chunk: list[Found]) -> list[Look]:
        with silent():
            looked = [self._look(found) for found in chunk]
        new = [(look.entry, image) for look, image in looked if look.entry is not None and image is not None]
        if new:
            entries, images = zip(*new)
            facts = described([centre(image, self.size) for image in images])
            for entry, facts_of_one, place in zip(entries, facts, self._keep(images)):
                entry.update(facts_of_one | place)
        self._note("")
        return [look for look, _ in looked]

    def _look(self, found: Found) -> tuple[Look, np.ndarray | None]:
        """The image's name, what its file says, and its pixels where it is new."""
        if found.content is None:
            return Look(), None
        self._note(found.path)
        try:
            content = read_file(found.content) if isinstance(found.content, str) else found.content
        except BadImage as error:
            return Look(reason=str(error)), None
        sha256 = content_sha256(content)
        if sha256 in self.known:
            return Look(sha256), None
        self.known.add(sha256)
        size = len(content) if isinstance(content, bytes) else content.nbytes
        try:
            pixels, facts = self.decode(content, self.size)
        except NoMemory as error:
            self.known.discard(sha256)  # a copy of it is looked at too
            return Look(sha256, reason=str(error)), None
        except BadImage as error:
            return Look(sha256, {"bytes": size, "reason": str(error)}), None
        return Look(sha256, {**facts, "bytes": size}), pixels

    def _keep(self, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        self.shard = self.shard or Shard(*new_file(self.folder))
        with naming(self.folder / self.shard.name):
            return [self.shard.write(pixels) for pixels in images]

    def _note(self, path: str) -> None:
        if self.note is not None:
            os.pwrite(self.note, f"{path}\n".encode(), 0)


class Shard:
    """A file of pixels, one image after the other."""

    def __init__(self, handle: int, name: str) -> None:
        self.handle, self.name, self.offset = handle, name, 0

    def write(self, pixels: np.ndarray) -> dict[str, Any]:
        """Where they lie."""
        view = pixels.data.cast("B")
        while view:
            view = view[os.write(self.handle, view) :]
        place = {"shard": self.name, "offset": self.offset, "shape": list(pixels.shape[1:])}
        self.offset += pixels.nbytes
        return place


def new_file(folder: Path) -> tuple[int, str]:
    """A file that no other process writes to; the umask says who may read it, as of every other file."""
    name = f"pixels-{uuid.uuid4().hex}"
    return os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), name


def looked_at(
    found: Iterable[Found], workers: int, *, folder: Path, size: int, decode: Decode, known: set[str]
) -> Iterator[Looked]:
    """Chunk by chunk, in order."""
    chunks = _chunks(found)
    first = list(islice(chunks, FEW))
    decoder = partial(Decoder, folder, size, decode, known)
    if len(first) < FEW or workers == 1:
        alone = decoder()
        yield from ((chunk, alone.look_at_all(chunk)) for chunk in chain(first, chunks))
        return
    # Forked, they have nothing to import; this process has no thread of its own yet (stages.prepare sees to tqdm's).
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    under_way(folder)  # notes of a run that was killed whole
    with ProcessPoolExecutor(workers, context, _InProcess.start, (decoder,)) as pool:
        try:
            yield from _ordered(pool, chain(first, chunks), 3 * workers)
        except BrokenProcessPool:
            raise StageError(_killed(under_way(folder))) from None
        finally:
            under_way(folder)


class _InProcess:
    """The decoder of a process of the pool: the pool hands every task to a function, which finds it here."""

    decoder: Decoder

    @classmethod
    def start(cls, decoder: Callable[[], Decoder]) -> None:
        end_with_parent()
        torch.set_num_threads(1)  # a forked process has none of its parent's threads, and would wait for them
        cls.decoder = decoder()
        cls.decoder.leave_notes()

    @classmethod
    def look_at_all(cls, chunk: list[Found]) -> list[Look]:
        return cls.decoder.look_at_all(chunk)


def _chunks(found: Iterable[Found]) -> Iterator[list[Found]]:
    found = iter(found)
    while chunk := list(islice(found, CHUNK)):
        yield chunk


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
        waiting.append((chunk, pool.submit(_InProcess.look_at_all, chunk)))
        if len(waiting) >= ahead:
            yield _first(waiting)
    while waiting:
        yield _first(waiting)


def _first(waiting: deque[tuple[list[Found], Future]]) -> Looked:
    chunk, looks = waiting.popleft()
    return chunk, looks.result()
