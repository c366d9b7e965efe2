"""Images that lie in arrays: the digits that come with scikit-learn, .npz files, sheets of tiles."""

from __future__ import annotations

import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from autolora.data.pictures import formats
from stages.common.runner import StageError
from stages.dataset.folders import SPLIT_FOLDERS, check_readable, show
from stages.dataset.found import Found

# What Python's zip, its three decoders and NumPy say of bytes that they cannot read, or a password, or a method.
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)
TILE = 32  # pixels per side of a tile on a sheet
# The names under which images and labels are found in an .npz file, and the split that they mean.
NAMES: list[tuple[str, str, str | None]] = [("x", "y", None), ("images", "labels", None)]
NAMES += [(f"x_{name}", f"y_{name}", split) for name, split in SPLIT_FOLDERS.items()]
NAMES += [(f"{name}_images", f"{name}_labels", split) for name, split in SPLIT_FOLDERS.items()]


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


def npz(path: Path) -> Iterator[Found]:
    """uint8 images and their labels, under the names x and y, x_train and y_train, or train_images and train_labels;
    `classes` may name the labels. Read as a stream: the file may be larger than the memory."""
    file = _the_npz(path)
    try:
        yield from _arrays(file)
    except BROKEN as error:
        if getattr(error, "errno", None):  # the disk's word, not a decoder's
            raise
        raise StageError(f"{file} is broken: {error}; write it again") from None


def _arrays(file: Path) -> Iterator[Found]:
    with zipfile.ZipFile(file) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        pairs = [pair for pair in NAMES if {pair[0], pair[1]} <= names]
        if not pairs:
            raise StageError(
                f"{file} holds {', '.join(sorted(names)) or 'no array'}: expected x and y, or x_train and y_train, ..."
            )
        left = sorted(names - {name for pair in pairs for name in pair})
        if left := [name for name in left if re.fullmatch("x(_.*)?|(.*_)?images", name)]:
            raise StageError(
                f"{file}: {', '.join(left)} would be left out: expected labels beside it, as y_test to x_test"
            )
        classes = _texts(_whole(archive, "classes"), "classes") if "classes" in names else None
        for images, labels, split in pairs:
            yield from _pair(archive, images, _names(_whole(archive, labels), labels, classes), split)


def _the_npz(path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.npz"))
    if len(files) == 1:
        check_readable(files[0])
    if len(files) != 1 or not zipfile.is_zipfile(files[0]):
        raise StageError(f"data.path is {path}: for data.source: npz it is one .npz file, or a folder with one")
    return files[0]


def _whole(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        shape, _, dtype = _read_header(member)
        if math.prod(shape) * dtype.itemsize > (there := archive.getinfo(f"{name}.npy").file_size):
            raise ValueError(f"{name} says that it has the shape {shape}, and holds {there} bytes")
        member.seek(0)
        return np.lib.format.read_array(member, allow_pickle=False)


def _names(labels: np.ndarray, name: str, classes: list[str] | None) -> list[str]:
    labels = labels.reshape(-1)
    if labels.dtype.kind == "f":  # as some tables keep whole numbers
        if (odd := np.flatnonzero(~np.isfinite(labels) | (labels != np.floor(labels)))).size:
            raise StageError(f"{name} is {labels[odd[0]]} at {odd[0]}: expected whole numbers, or names")
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu" or classes is None:
        return [show(text) for text in _texts(labels, name)]
    if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
        raise StageError(
            f"labels go from {labels.min()} to {labels.max()}, and classes names {len(classes)}: "
            "expected a name for each label from 0"
        )
    return [show(classes[label]) for label in labels]


def _texts(array: np.ndarray, name: str) -> list[str]:
    """Bytes are what a file written by Python 2, MATLAB or HDF5 holds."""
    if array.ndim != 1:
        raise StageError(f"{name} has the shape {array.shape}: expected one name after the other")
    try:
        return np.char.decode(array, "utf-8").tolist() if array.dtype.kind == "S" else [str(each) for each in array]
    except UnicodeDecodeError as error:
        raise StageError(f"{name} holds bytes that are no UTF-8 ({error.reason}): write the names as text") from None


def _pair(archive: zipfile.ZipFile, name: str, labels: list[str], split: str | None) -> Iterator[Found]:
    with archive.open(f"{name}.npy") as member:
        shape = _header(member, name)
        if shape[0] != len(labels):
            raise StageError(f"{archive.filename}: {name} has {shape[0]} images, and there are {len(labels)} labels")
        for index, label in enumerate(labels):
            image = np.frombuffer(member.read(int(np.prod(shape[1:]))), np.uint8).reshape(shape[1:])
            yield Found(f"{name}#{index}", label, split, _channels_last(image))


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _header(member: IO[bytes], name: str) -> tuple[int, ...]:
    shape, fortran, dtype = _read_header(member)
    pictures = len(shape) == 3 or (len(shape) == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)))
    if dtype != np.uint8 or fortran or not pictures:
        raise StageError(f"{name} is {dtype} {shape}: expected uint8 [n,h,w], [n,h,w,3] or [n,3,h,w], in C order")
    return shape


def _channels_last(image: np.ndarray) -> np.ndarray:
    if image.ndim == 3 and image.shape[2] not in (1, 3):
        image = image.transpose(1, 2, 0)
    return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image


def sheets(path: Path) -> Iterator[Found]:
    """One lossless picture per class, CLASS.png or train/CLASS.png, of 32 x 32 tiles row by row, as CIFAR is shown."""
    files = [(file, SPLIT_FOLDERS.get(file.parent.name.lower())) for file in sorted(path.glob("*/*.png"))]
    beside: list[tuple[Path, str | None]] = [(file, None) for file in sorted(path.glob("*.png"))]
    if files and (beside or not all(split for _, split in files)):
        odd = next(file for file, split in [*beside, *files] if not split)
        raise StageError(
            f"data.path is {path}: {odd.relative_to(path)} lies beside folders of splits; move it into one"
        )
    files = files or beside
    if not files:
        raise StageError(f"data.path is {path}: for data.source: sheets it holds CLASS.png, or train/CLASS.png, ...")
    for file, split in files:
        for index, tile in enumerate(tiles(file)):
            yield Found(show(f"{file.relative_to(path)}#{index}"), show(file.stem), split, tile)


def tiles(path: Path) -> np.ndarray:
    """uint8 [n,32,32,3]"""
    try:
        sheet: Any = np.asarray(Image.open(path, formats=formats()).convert("RGB"))
    except Image.DecompressionBombError:
        raise StageError(f"{path} has more pixels than Pillow opens: cut the class into two sheets") from None
    except Exception as error:  # a decoder fed with broken bytes raises what it likes
        raise StageError(f"{path} cannot be read as an image ({error}): restore or remove it") from None
    height, width, _ = sheet.shape
    if height % TILE or width % TILE:
        raise StageError(f"{path} has {width} x {height} pixels: a sheet is made of tiles of {TILE} x {TILE}")
    grid = sheet.reshape(height // TILE, TILE, width // TILE, TILE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid.reshape(-1, TILE, TILE, 3))
