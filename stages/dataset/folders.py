"""Images that lie as files: a folder with one subfolder per class, or a table of paths and labels.

Nothing is dropped without a word: what cannot be an image of the set is yielded with the reason.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from stages.common.runner import StageError
from stages.dataset.found import Found

SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_FOLDERS |= {"test": "test", "testing": "test"}
FOREIGN = {".heic", ".heif", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw"}  # pictures not read here
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")  # of JPEG, PNG, GIF and TIFF
CLUTTER = {"thumbs.db", "desktop.ini"}  # what file managers leave behind; names that begin with a dot are passed over
LINKED = "link: it leads to a folder, in a circle or to nothing, and is not followed; put the images there themselves"
OUTSIDE = "link: it points out of data.path; copy the image there"
UNLISTED = "unreadable: no permission to list the folder; chmod +rx it"
NAMED = "name: not plain text in UTF-8 on one line; rename it"
BEYOND = "cells beyond the header"
OVERFULL = "split: the row has more cells than the table has columns; quote what holds a comma, or name the column"
WRITTEN = "name: not plain text in UTF-8 on one line; save the table as UTF-8, or rename the image"


def folder(path: Path) -> Iterator[Found]:
    """One subfolder per class, or train, val and test folders with the classes inside."""
    if not path.is_dir():
        raise StageError(f"data.path is {path}: there is no such folder")
    try:
        inside = [entry.name for entry in _entries(path) if _kind(entry) != "file"]
    except PermissionError:
        raise StageError(f"data.path is {path}: no permission to list it; chmod +rx it") from None
    if not inside:
        raise StageError(f"data.path is {path}: it holds no class folders; expected CLASS/IMAGE or train/CLASS/IMAGE")
    if _split_folders(path, inside):
        for entry in _entries(path):
            if _kind(entry) == "folder":
                yield from _classes(path, entry.path, SPLIT_FOLDERS[entry.name.lower()])
            else:
                yield from _beside(path, entry, None)
    else:
        yield from _classes(path, path, None)


def _split_folders(path: Path, inside: list[str]) -> bool:
    """Whether the folders are splits; `train` and another one beside classes can only be a mistake."""
    splits = [name for name in inside if name.lower() in SPLIT_FOLDERS]
    if "train" not in {SPLIT_FOLDERS[name.lower()] for name in splits}:
        return False
    if len(splits) > 1 and len(splits) < len(inside):
        others = ", ".join(show(name) for name in inside if name not in splits)
        raise StageError(
            f"data.path is {path}: beside {' and '.join(splits)} lies {others}, which is no split; "
            "move it away, or rename the folders where these are classes"
        )
    return len(splits) == len(inside)


def _classes(root: Path, parent: str | Path, split: str | None) -> Iterator[Found]:
    try:
        entries = _entries(parent)
    except PermissionError:
        yield Found(_shown(root, str(parent)), "", split, None, UNLISTED)
        return
    for entry in entries:
        if _kind(entry) == "folder":
            yield from _class(root, entry, split)
        else:
            yield from _beside(root, entry, split)


def _beside(root: Path, entry: os.DirEntry, split: str | None) -> Iterator[Found]:
    """What lies where class folders are expected: a README is welcome, an image or a link to a folder is a mistake."""
    if _kind(entry) == "link":
        yield Found(_shown(root, entry.path), "", split, None, LINKED)
    elif _kind(entry) == "file" and is_image(entry):  # to open a pipe would wait for ever
        reason = "no class: it lies beside the class folders; move it into one"
        yield Found(_shown(root, entry.path), "", split, None, reason)


def _class(root: Path, entry: os.DirEntry, split: str | None) -> Iterator[Found]:
    label, empty = show(entry.name), True
    for found in _walk(root, entry.path, label, split):
        empty = False
        yield found
    if empty:
        reason = "empty class: no image lies in it; add some, or remove the folder"
        yield Found(_shown(root, entry.path), label, split, None, reason)


def _walk(root: Path, folder: str, label: str, split: str | None) -> Iterator[Found]:
    try:
        entries = _entries(folder)
    except PermissionError:
        yield Found(_shown(root, folder), label, split, None, UNLISTED)
        return
    for entry in entries:
        if _kind(entry) == "folder":
            yield from _walk(root, entry.path, label, split)
        else:
            path = _inside(entry.path, root)
            shown = show(path)
            reason = _fault(entry, root) if shown == path else NAMED
            yield Found(shown, label, split, None if reason else entry.path, reason)


def _entries(folder: str | Path) -> list[os.DirEntry]:
    """In a fixed order, without hidden files and what file managers leave behind."""
    entries = (e for e in os.scandir(folder) if not e.name.startswith(".") and e.name.lower() not in CLUTTER)
    return sorted(entries, key=lambda e: e.name)


def _kind(entry: os.DirEntry) -> str:
    """A link to a file counts as a file; a link to a folder is not followed, it may lead in a circle."""
    try:
        if entry.is_file():
            return "file"
        return "link" if entry.is_symlink() else "folder" if entry.is_dir() else "other"
    except OSError:  # a link to itself
        return "link"


def _fault(entry: os.DirEntry, root: Path) -> str:
    """Why this file is not even opened; empty when it is."""
    if (kind := _kind(entry)) == "link":
        return LINKED
    if kind == "other":
        return "not an image: neither a file nor a folder; remove it"
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        return OUTSIDE
    if not is_image(entry):
        suffix = os.path.splitext(entry.name)[1]
        if suffix.lower() in FOREIGN:
            return f"not an image: {suffix} is not read here; convert it to JPEG or PNG"
        return f"ignored: files named {suffix} hold no images; nothing to do"
    return ""


def is_image(entry: os.DirEntry) -> bool:
    """By its ending: of an image format, or none at all; with another ending by its first bytes."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in ("", ".") or suffix in Image.registered_extensions():
        return True
    try:
        with open(entry.path, "rb") as file:
            return file.read(8).startswith(BEGINNINGS)
    except OSError:
        return False


def show(path: str) -> str:
    """A path as one line of UTF-8: bytes that are not, and control characters, are written as escapes."""
    if path.isascii() and path.isprintable():
        return path
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(root: Path, path: str) -> str:
    return show(_inside(path, root))


def _inside(path: str, root: Path) -> str:
    """Below root, as os.scandir named it: asking the file system again would cost more than the image."""
    return path.removeprefix(f"{root}{os.sep}")


def table(path: Path) -> Iterator[Found]:
    """A folder that holds one .csv with the columns path, label and, if you like, split, and the images it names."""
    file = _the_table(path)
    with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
        reader = csv.DictReader(lines, restkey=BEYOND)
        reader.fieldnames = _header(reader, file)
        if twice := [name for name, count in Counter(reader.fieldnames).items() if count > 1 and name]:
            raise StageError(
                f"{file} has the column {twice[0]} {reader.fieldnames.count(twice[0])} times: name each once"
            )
        missing = {"path", "label"} - set(reader.fieldnames or ())
        if missing:
            raise StageError(f"{file} has no column {' and no column '.join(sorted(missing))}: needed are path, label")
        for row in _rows(reader, file):
            name, label, split = ((row.get(key) or "").strip() for key in ("path", "label", "split"))
            surplus = any(cell.strip() for cell in row.get(BEYOND, ()))  # a comma at the end of a line says nothing
            reason = OVERFULL if surplus else _row_fault(name, label, split, path)
            content = None if reason else str(path / name)
            yield Found(show(name), show(label), SPLIT_FOLDERS.get(split.lower()), content, reason)


def check_readable(file: Path) -> None:
    try:
        open(file, "rb").close()
    except PermissionError:
        raise StageError(f"{file}: no permission to read it; chmod +r it") from None


def _header(reader: csv.DictReader, file: Path) -> list[str]:
    try:
        return [name.strip().lower() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise StageError(f"{file}, line 1: {error}; mend the line") from None


def _rows(reader: csv.DictReader, file: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from reader
    except csv.Error as error:
        raise StageError(f"{file}, line {reader.line_num + 1}: {error}; mend the line") from None


def _the_table(path: Path) -> Path:
    tables = sorted(path.glob("*.csv")) if path.is_dir() else []
    if len(tables) != 1:
        held = ", ".join(t.name for t in tables) or "none"
        raise StageError(
            f"data.path is {path}: for data.source: csv it is a folder with one .csv file (it has {held}) "
            "and the images that the file names, so that DVC sees both change"
        )
    check_readable(tables[0])
    return tables[0]


def _row_fault(name: str, label: str, split: str, root: Path) -> str:
    if not name:
        return "missing: the row names no file; give a path, or remove the row"
    if not label:
        return "no label: the row gives none; add it, or remove the row"
    if split and split.lower() not in SPLIT_FOLDERS:
        return f"split: {show(split)} is none of train, val, test; correct it, or leave it empty"
    if show(name) != name:
        return WRITTEN
    try:
        inside = (root / name).resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a link to itself
        return LINKED
    return "" if inside else OUTSIDE
