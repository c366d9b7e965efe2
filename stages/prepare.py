"""Raw images -> splits that training reads at memory speed, and one row per image found.

    python -m stages.prepare        # or: dvc repro prepare

It never stops at a bad image: the row says why the image was left out, and stages.validate judges.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from autolora.common.files import naming, replacing, replacing_folder, write_json
from autolora.common.processes import cores
from autolora.common.progress import bar
from stages.common.backbone import refuse_unknown_backbone
from stages.common.command_line import takes_no_arguments
from stages.common.runner import StageError, main, processes_asked_for, timed, work_dir
from stages.common.views import PrepareParams, load
from stages.dataset.cells import in_cell
from stages.dataset.decode import DECODER, decode, decode_whole
from stages.dataset.duplicates import leave_out_copies, near_duplicates
from stages.dataset.found import Found
from stages.dataset.sources import LISTS, SOURCES
from stages.dataset.splits import SPLITS, draw
from stages.dataset.store import Store, in_turn

COLUMNS = ["path", "sha256", "phash", "label", "split", "width", "height", "mode", "mean", "std", "bytes"]
COLUMNS += ["near_duplicate", "reason"]
PREPARED, MANIFEST = Path("data/prepared"), Path("data/manifest.csv")


def prepare() -> None:
    params = load(PrepareParams)
    refuse_unknown_backbone()
    data = params.data
    size = data.stored_size or data.image_size
    decoder = decode_whole if size > data.image_size else decode
    made_by = {name: installed(name) for name in ("pillow", "torch", "torchvision")}
    folder = work_dir("prepare", size=size, kept=decoder.__name__, decoder=DECODER, **made_by)
    with timed("prepare", MANIFEST) as record, in_turn(folder):
        store = Store(folder, size, decoder)
        rows = list(store.decode(_watched(data.source, Path(data.path)), processes_asked_for() or cores()))
        _split(rows, params.seed, data.validation_fraction, data.test_fraction)
        leave_out_copies(rows)
        fit = [row for row in rows if not row["reason"]]
        if not fit:
            _write_manifest(rows)
            raise StageError(_nothing(rows))
        _mark_near_duplicates(fit, store)
        record |= {"images": len(rows), "decoded": store.decoded}
        with replacing_folder(PREPARED) as part:
            _write_splits(part, fit, store, data.image_size)
            _write_manifest(rows)


def _watched(source: str, path: Path) -> Iterator[Found]:
    """What the source finds, and how far it is."""
    total = sum(1 for _ in SOURCES[source](path)) if source in LISTS else None
    tqdm.monitor_interval = 0  # no thread: the decoding processes are forked
    return iter(bar(total, "images", "image", iterable=SOURCES[source](path)))


def _split(rows: list[dict[str, Any]], seed: int, validation_fraction: float, test_fraction: float) -> None:
    parts = {row["split"] for row in rows if not row["reason"]}  # an image that cannot be used decides nothing
    for row in rows:
        row["split"] = draw(seed, row["sha256"], row["split"], parts, validation_fraction, test_fraction)


def _mark_near_duplicates(rows: list[dict[str, Any]], store: Store) -> None:
    names, splits = [row["sha256"] for row in rows], [row["split"] for row in rows]
    found = near_duplicates(
        [row["phash"] for row in rows], splits, lambda some: store.pixels([names[index] for index in some])
    )
    for left, right in found.items():
        rows[left]["near_duplicate"] = f"{rows[right]['path']} ({splits[right]})"


def _nothing(rows: list[dict[str, Any]]) -> str:
    reasons = "\n".join(f"  {row['path']}: {row['reason']}" for row in rows[:20])
    return f"no image can be used; the first of {len(rows)} found ({MANIFEST} has all):\n{reasons}"


def _write_splits(folder: Path, fit: list[dict[str, Any]], store: Store, size: int) -> None:
    """Training images whole where crops are drawn from them; the others, and small ones, as the model is given them."""
    classes = sorted({row["label"] for row in fit}, key=_natural)
    number = {name: index for index, name in enumerate(classes)}
    write_json(folder / "classes.json", classes)
    for split in SPLITS:
        chosen = [row for row in fit if row["split"] == split]
        (folder / split).mkdir()
        write_json(folder / split / "classes.json", classes)
        _save(folder / split / "labels.npy", np.array([number[row["label"]] for row in chosen], np.int64))
        _save(folder / split / "ids.npy", np.array([row["sha256"] for row in chosen], "S64"))
        names = [row["sha256"] for row in chosen]
        if split == "train" and store.size > size:
            _write_rectangles(folder / split, names, store)
        else:
            _write_array(folder / split / "images.npy", (len(names), 3, size, size), _squares(names, store, size))


def _squares(names: list[str], store: Store, size: int) -> Iterator[np.ndarray]:
    """As many at a time as make a megabyte."""
    count = max(1, 2**20 // (3 * size * size))
    for first in range(0, len(names), count):
        yield store.squares(names[first : first + count], size)


def _natural(label: str) -> tuple:
    """2 before 10 where labels are numbers; names by the alphabet, after all numbers."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def _write_rectangles(folder: Path, names: list[str], store: Store) -> None:
    """Both ends of long images belong to training: all bytes one after the other, and the shapes beside them."""
    shapes = store.shapes(names)
    _save(folder / "shapes.npy", shapes)
    _write_array(folder / "images.npy", (int(3 * shapes.prod(1).sum()),), store.read(names))


def _save(path: Path, values: np.ndarray) -> None:
    with naming(path):
        np.save(path, values)


def _write_array(path: Path, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """A .npy file, part by part: written and not memory-mapped, since a full disk kills who writes through a map."""
    with naming(path), open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(part.data)


def _write_manifest(rows: list[dict[str, Any]]) -> None:
    with naming(MANIFEST), replacing(MANIFEST) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows({k: in_cell(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(prepare)
