"""The images of presets/sweeps/small-table.yaml, cut once and for all: data/raw/small/NAME.npz from PATH/NAME.

    python -m benchmarks.small_sets PATH

PATH holds the folders cifar100-20 (train/CLASS.png, sheets of tiles), dtd10 and trashnet (CLASS/*.jpg); digits come
with scikit-learn. They are 20 classes of CIFAR-100 (Krizhevsky, 2009): apple, bed, bowl, camel, chair, couch, dolphin,
girl, lamp, lobster, mouse, otter, plain, rabbit, rose, skunk, squirrel, tank, train, whale; ten textures of
DTD (Cimpoi et al., 2014), 120 photographs of each, the short side 96 pixels: banded, blotchy, braided,
bubbly, bumpy, chequered, cobwebbed, cracked, crosshatched, crystalline; and TrashNet (Thung & Yang, 2016) at 150
pixels (presets/trashnet.yaml says where it is). CIFAR-100 and DTD are fetched by `prepare` (docs/data.md: cifar100,
dtd). A sheet holds CIFAR-100's images of one class, train or test, as they come, 25 or 20 a row; DTD's are scaled.

Each class is cut into a test part, which is the same for every cell and seed, and a pool from which the seed of a run
draws its training and its validation images. What is left over stays unseen, but for the sets that ask how many images
are needed. The cut is drawn, with a fixed seed, from the tiles as they lie on a sheet and the files by their names:
with the same classes in another order, figures differ by as much as another draw of images makes them differ.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from autolora.common.command_line import Command
from autolora.common.files import replacing
from autolora.data.pictures import formats
from stages.dataset.arrays import digits, tiles

FOLDER = Path("data/raw/small")
SIDE = 64  # pixels that are kept of a photograph; data.image_size asks for them or for fewer
PHOTOS = ("cifar100-20", "dtd10", "trashnet")


class Cut(NamedTuple):
    """How much of each class, in images or as a share."""

    test: float
    pool: float
    val: float = 0  # 0: the seed of a run draws its validation images from the pool


CUTS = {  # about 720 images in each pool
    "digits": Cut(34, 72),
    "dtd10": Cut(30, 72),
    "trashnet": Cut(0.2, 0.285),
    "cifar100-20": Cut(25, 36),
}
AMOUNTS = {100: 5, 300: 15, 1000: 50, 3000: 150, 9000: 450}  # images for training: of each class of cifar100-20


def cuts() -> Iterator[tuple[str, str, Cut]]:
    """The name of each file, of the set that it is cut from, and the cut."""
    for name, cut in CUTS.items():
        yield name, name, cut
    test = CUTS["cifar100-20"].test
    for amount, pool in AMOUNTS.items():
        yield f"cifar100-20-of-{amount}", "cifar100-20", Cut(test, pool, val=10)


def by_class(folder: Path) -> dict[str, np.ndarray]:
    """uint8 [n,side,side,3] of each class of photographs."""
    if sheets := sorted(folder.glob("train/*.png")):
        return {file.stem: tiles(file) for file in sheets}
    classes = sorted(place for place in folder.iterdir() if place.is_dir())
    return {place.name: np.stack([small(file) for file in sorted(place.glob("*.jpg"))]) for place in classes}


def digits_by_class() -> dict[str, np.ndarray]:
    """uint8 [n,8,8,3]"""
    found: dict[str, list[np.ndarray]] = {}
    for one in digits(Path()):
        found.setdefault(one.label, []).append(np.asarray(one.content))
    return {label: np.repeat(np.stack(images)[..., None], 3, axis=-1) for label, images in sorted(found.items())}


def small(file: Path) -> np.ndarray:
    with Image.open(file, formats=formats()) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR))


def parts(images: dict[str, np.ndarray], cut: Cut) -> dict[str, np.ndarray]:
    """The arrays of one file. A larger pool holds every image of a smaller one, and the test part is the same."""
    draw, found = np.random.default_rng(0), dict[str, list[np.ndarray]]()
    for label, some in enumerate(images.values()):
        test, pool, val = (int(n if n >= 1 else n * len(some)) for n in cut)
        some = some[draw.permutation(len(some))]
        pieces = np.split(some, [test, test + val, test + val + pool])
        for part, chosen in zip(("test", "val", "train"), pieces, strict=False):
            if len(chosen):
                found.setdefault(f"x_{part}", []).append(chosen)
                found.setdefault(f"y_{part}", []).append(np.full(len(chosen), label))
    return {name: np.concatenate(pieces) for name, pieces in found.items()} | {"classes": np.array(list(images))}


def write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """As np.savez, with fixed dates: the same bytes at any time, by which DVC knows them again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())


def main() -> None:
    parser = Command(__doc__, reads="PATH/cifar100-20, PATH/dtd10 and PATH/trashnet", writes=f"{FOLDER}/*.npz")
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    images = {name: by_class(path / name) for name in PHOTOS} | {"digits": digits_by_class()}
    for name, of, cut in cuts():
        arrays = parts(images[of], cut)
        write(FOLDER / f"{name}.npz", arrays)
        print(
            name, *(f"{part} {len(arrays[f'x_{part}'])}" for part in ("train", "val", "test") if f"x_{part}" in arrays)
        )


if __name__ == "__main__":
    main()
