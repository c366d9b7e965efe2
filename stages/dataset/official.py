"""The six data sets of the paper, from their own archives: found in data.path, unpacked or not, or else downloaded.

An archive is used only when its checksum is right; a download that breaks off goes on where it stopped. What is
unpacked lies in .work/downloads, and is unpacked once. docs/data.md says which split each set is used with.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autolora.common.downloads import fetch_url
from autolora.common.errors import BadArgument
from autolora.common.files import locked
from stages.common.runner import StageError, work_root
from stages.dataset.found import Found
from stages.dataset.splits import place

CALTECH_TRAINING_IMAGES = 60  # per class, as in robust-models-transfer; the rest is the test part


@dataclass(frozen=True)
class Archive:
    url: str
    algorithm: str
    digest: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Published:
    """A data set as its authors published it."""

    name: str
    marker: str  # a file or folder that is there once the archives are unpacked
    archives: tuple[Archive, ...]
    classes: int
    counts: dict[str, int]  # images per split


# MD5 as torchvision (CIFAR, DTD, Caltech-256) and the CaltechDATA record (CUB) publish them, SHA-256 as TensorFlow
# Datasets does (Dogs: its authors publish none).
CIFAR10 = Published(
    "cifar10",
    "cifar-10-batches-py",
    (Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "md5", "c58f30108f718f92721af3b95e74349a"),),
    10,
    {"train": 50_000, "test": 10_000},
)
CIFAR100 = Published(
    "cifar100",
    "cifar-100-python",
    (Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "md5", "eb9058c3a382ffc7106e4002c42a8d85"),),
    100,
    {"train": 50_000, "test": 10_000},
)
DTD = Published(
    "dtd",
    "dtd/labels",
    (
        Archive(
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "md5",
            "fff73e5086ae6bdbea199a49dfb8a4c1",
        ),
    ),
    47,
    {"train": 3_760, "test": 1_880},
)
CALTECH256 = Published(
    "caltech256",
    "256_ObjectCategories",
    (
        Archive(
            "https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
            "md5",
            "67b4f42ca05d46448c6bb8ecd2220f6d",
        ),
    ),
    257,
    {"train": 257 * CALTECH_TRAINING_IMAGES, "test": 30_607 - 257 * CALTECH_TRAINING_IMAGES},
)
DOGS = Published(
    "dogs",
    "Images",
    (
        Archive(
            "http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar",
            "sha256",
            "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
        ),
        Archive(
            "http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar",
            "sha256",
            "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
        ),
    ),
    120,
    {"train": 12_000, "test": 8_580},
)
CUB200 = Published(
    "cub200",
    "CUB_200_2011/images",
    (
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "md5",
            "97eceeb196236b17998738112f37df78",
        ),
    ),
    200,
    {"train": 5_994, "test": 5_794},
)
PUBLISHED = {one.name: one for one in (CIFAR10, CIFAR100, DTD, CALTECH256, DOGS, CUB200)}


def cifar10(path: Path) -> Iterator[Found]:
    from torchvision.datasets import CIFAR10 as Reader

    return _cifar(CIFAR10, Reader, path)


def cifar100(path: Path) -> Iterator[Found]:
    from torchvision.datasets import CIFAR100 as Reader

    return _cifar(CIFAR100, Reader, path)


def _cifar(published: Published, reader: type, path: Path) -> Iterator[Found]:
    """Read by torchvision, which verifies every file."""
    root = unpacked(published, path)
    found = []
    for split in ("train", "test"):
        try:
            data = reader(root, train=split == "train")
        except RuntimeError as error:
            raise StageError(f"{root / published.marker}: {error}") from None
        for index, (image, label) in enumerate(zip(data.data, data.targets)):
            found.append(Found(f"{split}#{index}", data.classes[label], split, image))
    return _complete(published, found)


def dtd(path: Path) -> Iterator[Found]:
    """Split 1, its training and validation parts together for training; a new validation part is drawn from them."""
    root = unpacked(DTD, path) / "dtd"
    return _complete(DTD, _dtd(root))


def _dtd(root: Path) -> Iterator[Found]:
    for name, split in (("train1", "train"), ("val1", "train"), ("test1", "test")):
        for line in _lines(root / "labels" / f"{name}.txt"):
            yield Found(line, line.split("/")[0], split, str(root / "images" / line))


def dogs(path: Path) -> Iterator[Found]:
    root = unpacked(DOGS, path)
    return _complete(DOGS, _dogs(root))


def _dogs(root: Path) -> Iterator[Found]:
    from scipy.io import loadmat  # comes with scikit-learn

    for split in ("train", "test"):
        for (cell,) in loadmat(root / f"{split}_list.mat")["file_list"]:
            line = str(cell[0])  # n02085620-Chihuahua/n02085620_5927.jpg
            yield Found(line, line.split("/")[0].partition("-")[2], split, str(root / "Images" / line))


def cub200(path: Path) -> Iterator[Found]:
    root = unpacked(CUB200, path) / "CUB_200_2011"
    return _complete(CUB200, _cub200(root))


def _cub200(root: Path) -> Iterator[Found]:
    training = dict(line.split() for line in _lines(root / "train_test_split.txt"))
    for line in _lines(root / "images.txt"):
        number, name = line.split()  # 1 001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg
        split = "train" if training[number] == "1" else "test"
        yield Found(name, name.split("/")[0].partition(".")[2], split, str(root / "images" / name))


def caltech256(path: Path) -> Iterator[Found]:
    """60 images of each class for training, the rest for test: drawn by the hash of the file's name, the same for every
    seed. Only CLASS/NUMBER.jpg count: the archive also holds a few stray files."""
    root = unpacked(CALTECH256, path) / "256_ObjectCategories"
    return _complete(CALTECH256, _caltech256(root))


def _caltech256(root: Path) -> Iterator[Found]:
    for folder in sorted(f for f in root.iterdir() if f.is_dir()):
        files = sorted(folder.glob("*.jpg"))
        training = set(sorted(files, key=lambda f: place(0, f.name, "caltech256"))[:CALTECH_TRAINING_IMAGES])
        for file in files:
            split = "train" if file in training else "test"
            yield Found(f"{folder.name}/{file.name}", folder.name.partition(".")[2], split, str(file))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _complete(published: Published, found: Iterable[Found]) -> Iterator[Found]:
    """Refuse half a data set: figures on it could be compared with none."""
    everything = list(found)
    counts = Counter(f.split for f in everything)
    classes = len({f.label for f in everything})
    if classes != published.classes or dict(counts) != published.counts:
        raise StageError(
            f"{published.name} is not whole: it has {classes} classes and {dict(counts)} images, "
            f"expected are {published.classes} and {published.counts}; unpack it again, or let it be downloaded"
        )
    return iter(everything)


# --- archives ---------------------------------------------------------------------------------------------------------


def unpacked(published: Published, path: Path) -> Path:
    """The folder in which `marker` lies: data.path itself, or that to which its archives, or downloaded ones, went."""
    if (path / published.marker).exists():
        return path
    target = work_root() / "downloads" / published.name
    with locked(target.with_name(f"{target.name}.lock"), wait=True):  # cells of a sweep may unpack the same set
        if not target.exists():
            files = [_archive(published, archive, path) for archive in published.archives]
            _unpack(files, target)
    if not (target / published.marker).exists():
        raise StageError(f"{target} does not hold {published.marker}: remove the folder and run again")
    return target


def _archive(published: Published, archive: Archive, path: Path) -> Path:
    """The archive in data.path, or the downloaded one; in either case the one that was published."""
    file = path / archive.name
    if not file.is_file():
        try:
            file = fetch_url(archive.url)
        except BadArgument as error:
            raise StageError(
                f"{published.name} is not in {path} and cannot be downloaded from {archive.url}: {error.reason}. "
                f"Put {archive.name} there, or the folder {published.marker} that is in it"
            ) from None
    if (digest := _digest(file, archive.algorithm)) != archive.digest:
        raise StageError(
            f"{file} is not the published {archive.name}: its {archive.algorithm} is {digest}, "
            f"expected {archive.digest}; remove it and run again"
        )
    return file


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _unpack(files: list[Path], target: Path) -> None:
    """All or nothing: a folder under this name is whole."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of one that was killed: whoever unpacks is alone
    part.mkdir(parents=True)
    try:
        for file in files:
            with tarfile.open(file) as archive:
                archive.extractall(part, filter="data")
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
