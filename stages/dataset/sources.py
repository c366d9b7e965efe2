"""Where images come from: each source is a function that yields what it finds, one image at a time, in a fixed order.

    for found in SOURCES["folder"](path): ...       # found.path, found.label, found.split, found.content, found.reason

A new source is a function from data.path to `Found`, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from stages.dataset.arrays import digits, npz, sheets
from stages.dataset.folders import folder, table
from stages.dataset.found import Found
from stages.dataset.official import caltech256, cifar10, cifar100, cub200, dogs, dtd

SOURCES: dict[str, Callable[[Path], Iterator[Found]]] = {
    "digits": digits,
    "folder": folder,
    "csv": table,
    "npz": npz,
    "sheets": sheets,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "dtd": dtd,
    "caltech256": caltech256,
    "dogs": dogs,
    "cub200": cub200,
}
# Those that only list files: it costs little to count them first.
LISTS = frozenset({"folder", "csv", "dtd", "caltech256", "dogs", "cub200"})
