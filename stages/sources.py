"""Where images come from: each source is a function that yields what it finds, one image at a time, in a fixed order.

    for found in SOURCES["folder"](path): ...       # found.path, found.label, found.split, found.content, found.reason

Nothing is dropped without a word: what cannot be an image of the set is yielded with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from stages.store import Found
from stages.work import StageError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CLUTTER = {"thumbs.db", "desktop.ini"}  # what file managers leave behind; names that begin with a dot are passed over


def digits(path: Path) -> Iterator[Found]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 in 17 grey levels; they come with the package."""
    table = np.loadtxt(_digits_file(), delimiter=",")  # 64 grey levels from 0 to 16, and the label
    grey = np.round(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    for index, (image, label) in enumerate(zip(grey, table[:, 64])):
        yield Found(f"digits#{index}", str(int(label)), None, image)


def _digits_file() -> Path:
    """The file that sklearn.datasets.load_digits reads; importing that takes three seconds, reading the file none."""
    package = find_spec("sklearn")
    places = package.submodule_search_locations if package else None
    if not places:
        raise StageError("data.source is digits, and scikit-learn, which brings them, is not installed")
    return Path(places[0]) / "datasets/data/digits.csv.gz"


def folder(path: Path) -> Iterator[Found]:
    """One subfolder per class, or train, val and test folders with the classes inside."""
    inside = _folders(path)
    if not inside:
        raise StageError(f"data.path is {path}: it holds no class folders; expected CLASS/IMAGE or train/CLASS/IMAGE")
    if "train" in inside and set(inside) <= set(SPLIT_FOLDERS):
        for name in inside:
            yield from _classes(path, path / name, SPLIT_FOLDERS[name])
    else:
        yield from _classes(path, path, None)


def _folders(path: Path) -> list[str]:
    if not path.is_dir():
        raise StageError(f"data.path is {path}: there is no such folder")
    return sorted(e.name for e in os.scandir(path) if not e.name.startswith(".") and e.is_dir())


def _classes(root: Path, parent: Path, split: str | None) -> Iterator[Found]:
    for entry in _sorted(parent):
        shown = show(os.path.relpath(entry.path, root))
        if entry.is_dir() and not entry.is_symlink():
            yield from _class(root, entry, split)
        elif entry.is_symlink() and not entry.is_file():
            yield Found(shown, "", split, None, _LINKED_FOLDER)
        elif is_image_name(entry.name):
            yield Found(shown, "", split, None, "no class: it lies beside the class folders; move it into one")


_LINKED_FOLDER = "link: a link to a folder, or to nothing, is not followed; put the images there themselves"


def _class(root: Path, entry: os.DirEntry, split: str | None) -> Iterator[Found]:
    label, empty = show(entry.name), True
    for found in _walk(root, entry.path, label, split):
        empty = False
        yield found
    if empty:
        shown = show(os.path.relpath(entry.path, root))
        yield Found(shown, label, split, None, "empty class: no image lies in it; add some, or remove the folder")


def _walk(root: Path, folder: str, label: str, split: str | None) -> Iterator[Found]:
    for entry in _sorted(folder):
        shown = show(os.path.relpath(entry.path, root))
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(root, entry.path, label, split)
        else:
            reason = _fault(entry, root)
            yield Found(shown, label, split, None if reason else entry.path, reason)


def _sorted(folder: str | Path) -> list[os.DirEntry]:
    entries = (e for e in os.scandir(folder) if not e.name.startswith(".") and e.name.lower() not in CLUTTER)
    return sorted(entries, key=lambda e: e.name)


def _fault(entry: os.DirEntry, root: Path) -> str:
    """Why this file is not even opened; empty when it is."""
    if show(entry.name) != entry.name:
        return "name: not plain text in UTF-8 on one line; rename it"
    if entry.is_symlink() and not entry.is_file():
        return _LINKED_FOLDER
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        return "link: it points out of data.path; copy the image there"
    if not entry.is_file():
        return "not an image: neither a file nor a folder; remove it"
    if not is_image_name(entry.name):
        return f"ignored: files named {Path(entry.name).suffix} hold no images; nothing to do"
    return ""


def is_image_name(name: str) -> bool:
    """By its ending: of an image format, or none at all."""
    suffix = Path(name).suffix.lower()
    return not suffix or suffix in Image.registered_extensions()


def show(path: str) -> str:
    """A path as one line of UTF-8: bytes that are not, and control characters, are written as escapes."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


SOURCES: dict[str, Callable[[Path], Iterator[Found]]] = {"digits": digits, "folder": folder}
