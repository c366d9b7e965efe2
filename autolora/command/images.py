"""DATA: a folder of class folders, an .npz, a .csv of paths and labels, or a part of data/prepared.

Which images are taken is decided by a hash, the same number of each class. Files are decoded as `prepare` does it.
Where they are larger or smaller than the network's images, their short side is resized and the middle is cut out.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from autolora.common.errors import BadArgument, first_line
from autolora.common.files import read_json
from autolora.data.images import TestImages
from autolora.data.pictures import picture, scaled
from autolora.data.sample import read_images, stratified

READ = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
JPEG = b"\xff\xd8"  # its first bytes
PAIRS = (("x", "y"), ("x_test", "y_test"), ("images", "labels"), ("data", "labels"), ("arr_0", "arr_1"))
CLUTTER = {"thumbs.db", "desktop.ini"}  # what file managers leave behind
Shape = tuple[int, int, int]
Wanted = tuple[Shape | None, Sequence[str] | None]  # size and classes, as the model says


@dataclass
class Data:
    """The images that are attacked."""

    name: str
    images: TestImages
    of: int  # how many there were to choose from
    classes: list[str] | None  # in the order of the labels
    folders: bool = False  # whether the order of the classes is that of their folders' names, and so a guess
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Listed:
    """Images that lie as files."""

    root: Path
    names: list[str]  # relative to root
    labels: list[str]
    empty: list[str] = field(default_factory=list)  # class folders without an image
    notes: dict[str, Any] = field(default_factory=dict)


def read(text: str, count: int | str, seed: int, shape: Shape | None, classes: Sequence[str] | None) -> Data:
    path = Path(text)
    if not path.exists():
        raise BadArgument("data", text, "there is no such file or folder")
    data = _read(path, count, seed, (shape, classes))
    if twice := _under_two_labels(data.images):
        data.notes["two_labels"] = twice
    return data


def _read(path: Path, count: int | str, seed: int, wanted: Wanted) -> Data:
    if path.suffix == ".npz":
        return _arrays(path, count, seed, *wanted)
    if path.suffix == ".csv":
        return _files(path, _table(path), count, seed, wanted)
    if path.is_dir() and (path / "images.npy").is_file():
        return _prepared(path, count, seed, *wanted)
    if path.is_dir():
        return _files(path, _folders(path), count, seed, wanted)
    raise BadArgument(
        "data", str(path), "expected a folder with one folder for each class, an .npz, a .csv or data/prepared/test"
    )


def _under_two_labels(images: TestImages) -> int:
    """How many images are there again under another label: one of the two is wrong."""
    labels: dict[bytes, set[int]] = {}
    for image, label in zip(images.x, images.y.tolist()):
        labels.setdefault(hashlib.sha256(image.tobytes()).digest(), set()).add(label)
    return sum(len(of) > 1 for of in labels.values())


def told(notes: Mapping[str, Any]) -> list[str]:
    """What should be known before the attack, in a line each."""
    said = []
    if over := notes.get("passed_over"):
        named = ", ".join(f"{n} {ending}" for ending, n in over.items())
        said.append(f"files that are no image by their ending are passed over: {named}")
    if repeated := notes.get("repeated"):
        said.append(f"{repeated} rows of the table are there already, and count once")
    if twice := notes.get("two_labels"):
        said.append(f"{twice} images are there under two labels, of which one is wrong")
    return said


# --- arrays -----------------------------------------------------------------------------------------------------------


def _prepared(path: Path, count: int | str, seed: int, shape: Shape | None, classes: Sequence[str] | None) -> Data:
    """Its labels are numbers in the order of its own classes, which may be another one than the model's."""
    every, own = read_images(path), [str(name) for name in read_json(path / "classes.json")]
    wanted = list(classes) if classes else own
    present = [own[label] for label in sorted(set(every.y.tolist()))]
    _refuse_unknown(path, present, wanted)
    numbers = np.array([wanted.index(name) if name in present else -1 for name in own])
    images = stratified(TestImages(every.x, numbers[every.y], every.ids), count, seed)
    _same_size(images.x, shape, path)
    return Data(str(path), images, len(every), wanted)


def _arrays(path: Path, count: int | str, seed: int, shape: Shape | None, classes: Sequence[str] | None) -> Data:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadArgument("data", str(path), f"it is no .npz of arrays ({first_line(error)})") from error
    names = next((pair for pair in PAIRS if set(pair) <= set(held)), None)
    if names is None:
        raise BadArgument("data", str(path), f"it holds {', '.join(held)}: expected x and y")
    x, y = held[names[0]], held[names[1]]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if x.ndim == 3 and len(x) == len(y):
        raise BadArgument("data", str(path), f"images of shape {x.shape}: of grey ones save [n,1,h,w]")
    _in_range(x, path)
    every = TestImages.of(x, y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y, held.get("ids"))
    _same_size(every.x, shape, path)
    return Data(str(path), stratified(every, count, seed), len(every), list(classes) if classes else None)


def _in_range(x: np.ndarray, path: Path) -> None:
    if x.dtype == np.uint8 or x.size == 0:
        return
    if not np.issubdtype(x.dtype, np.floating):
        raise BadArgument("data", str(path), f"images of {x.dtype}: expected uint8, or floats in [0,1]")
    low, high = float(x.min()), float(x.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadArgument("data", str(path), "the images hold NaN or infinite values")
    if low >= 0 and 1 < high <= 255:
        raise BadArgument(
            "data", str(path), f"pixels from {low:g} to {high:g}: divide them by 255, or save them as uint8"
        )
    if low < 0 or high > 1:
        raise BadArgument("data", str(path), f"pixels from {low:g} to {high:g}: expected [0,1], before any normalising")


def _same_size(x: np.ndarray, shape: Shape | None, path: Path) -> None:
    if shape is not None and tuple(x.shape[1:]) != shape:
        has, takes = "x".join(map(str, x.shape[1:])), "x".join(map(str, shape))
        raise BadArgument("data", str(path), f"its images are {has}, and the model takes {takes}")


# --- files ------------------------------------------------------------------------------------------------------------


def _folders(path: Path) -> Listed:
    inside = {f.name: _visible(f) for f in sorted(path.iterdir()) if f.is_dir() and not f.name.startswith(".")}
    found = [(str(f.relative_to(path)), name) for name, files in inside.items() for f in files if _is_read(f)]
    if not found:
        raise BadArgument("data", str(path), f"no image lies in a class folder (read are {', '.join(sorted(READ))})")
    over = Counter(f.suffix.lower() or "without ending" for files in inside.values() for f in files if not _is_read(f))
    empty = [name for name, files in inside.items() if not any(map(_is_read, files))]
    notes = {"passed_over": dict(sorted(over.items()))} if over else {}
    return Listed(path, [name for name, _ in found], [label for _, label in found], empty, notes)


def _visible(folder: Path) -> list[Path]:
    """Without hidden files and folders: copies that editors and macOS make of an image are none."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.name.lower() not in CLUTTER
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    ]


def _is_read(file: Path) -> bool:
    return file.suffix.lower() in READ


def _table(path: Path) -> Listed:
    with open(path, newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        rows = [((row.get("path") or "").strip(), (row.get("label") or "").strip()) for row in reader]
    if not rows or not {"path", "label"} <= set(reader.fieldnames):
        raise BadArgument("data", str(path), "expected the columns path and label, and a row for each image")
    for number, row in enumerate(rows, 2):
        if not all(row):
            raise BadArgument("data", str(path), f"line {number} lacks a path or a label")
    once = list(dict.fromkeys(rows))
    notes = {"repeated": len(rows) - len(once)} if len(once) < len(rows) else {}
    return Listed(path.parent, [name for name, _ in once], [label for _, label in once], notes=notes)


def _files(path: Path, listed: Listed, count: int | str, seed: int, wanted: Wanted) -> Data:
    shape, names = wanted
    if names is None and listed.empty:  # whether it is a class decides what number the next ones have
        what = f"no image that is read lies in its folder {listed.empty[0]!r} (read are {', '.join(sorted(READ))})"
        raise BadArgument("data", str(path), f"{what}: add some, remove the folder, or say --classes")
    classes = list(names) if names else _in_order(set(listed.labels))
    _refuse_unknown(path, set(listed.labels), classes)
    labels = np.array([classes.index(label) for label in listed.labels])
    chosen = stratified(TestImages(np.zeros(len(labels)), labels, listed.names), count, seed)
    pictures, sizes = zip(*(_decoded(listed.root / name, shape) for name in chosen.ids))
    if len({picture.shape for picture in pictures}) > 1:
        raise BadArgument("data", str(path), "images of several sizes, and the model takes any: choose one with --size")
    resized = sum(size != picture.shape[1:] for size, picture in zip(sizes, pictures))
    notes = listed.notes | ({"resized": resized} if resized else {})
    images = TestImages.of(np.stack(pictures), chosen.y)
    return Data(str(path), images, len(labels), classes, folders=names is None, notes=notes)


def _refuse_unknown(path: Path, found: Iterable[str], classes: Sequence[str]) -> None:
    if unknown := sorted(set(found) - set(classes)):
        raise BadArgument("data", str(path), f"{unknown[0]!r} is no class of the model: {', '.join(classes[:8])}, ...")


def _in_order(labels: Iterable[str]) -> list[str]:
    """Numbers by their value: 10 comes after 9."""
    found = list(labels)
    key: Callable[[str], Any] = int if all(label.isdecimal() for label in found) else str
    return sorted(found, key=key)


def _decoded(path: Path, shape: Shape | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """uint8 [3,h,w], and the size as it was."""
    try:
        pixels = _pixels(path.read_bytes())
    except Exception as error:  # a decoder fed with broken bytes raises what it likes
        raise BadArgument("data", str(path), f"it cannot be decoded ({first_line(error)})") from error
    size = tuple(pixels.shape[1:])
    if shape is None or size == shape[1:]:
        return pixels.numpy(), size
    h, w = shape[1:]
    times = min(size[0] / h, size[1] / w)
    return scaled(pixels, (round(h * times), round(w * times)), (h, w)).numpy(), size


def _pixels(content: bytes) -> torch.Tensor:
    """uint8 [3,h,w], those that `prepare` decodes: torchvision reads a palette as numbers, and no turned WebP."""
    if content.startswith(JPEG):
        given = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(given, ImageReadMode.RGB, apply_exif_orientation=True)
    return picture(content).expand(3, -1, -1).contiguous()
