"""Images that lie as files: a folder with one subfolder per class, or a table of paths and labels.

Nothing is dropped without a word: what cannot be an image of the set is yielded with the reason.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from stages.store import Found
from stages.work import StageError

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CLUTTER = {"thumbs.db", "desktop.ini"}  # what file managers leave behind; names that begin with a dot are passed over


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


def table(path: Path) -> Iterator[Found]:
    """A folder that holds one .csv with the columns path, label and, if you like, split, and the images it names."""
    file = _the_table(path)
    with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines)
        missing = {"path", "label"} - set(reader.fieldnames or ())
        if missing:
            raise StageError(f"{file} has no column {' and no column '.join(sorted(missing))}: needed are path, label")
        for row in reader:
            reason = _row_fault(row, path)
            split = SPLIT_FOLDERS.get((row.get("split") or "").strip().lower())
            content = None if reason else str(path / row["path"])
            yield Found(show(row["path"] or ""), show(row["label"] or ""), split, content, reason)


def _the_table(path: Path) -> Path:
    tables = sorted(path.glob("*.csv")) if path.is_dir() else []
    if len(tables) != 1:
        held = ", ".join(t.name for t in tables) or "none"
        raise StageError(
            f"data.path is {path}: for data.source: csv it is a folder with one .csv file (it has {held}) "
            "and the images that the file names, so that DVC sees both change"
        )
    return tables[0]


def _row_fault(row: dict[str, str], root: Path) -> str:
    path, label, split = ((row.get(key) or "").strip() for key in ("path", "label", "split"))
    if not path:
        return "missing: the row names no file; give a path, or remove the row"
    if not label:
        return "no label: the row gives none; add it, or remove the row"
    if split and split.lower() not in SPLIT_FOLDERS:
        return f"split: {show(split)} is none of train, val, test; correct it, or leave it empty"
    if show(path) != path:
        return "name: not plain text in UTF-8 on one line; rename it"
    if not (root / path).resolve().is_relative_to(root.resolve()):
        return "link: it points out of data.path; copy the image there"
    return ""
