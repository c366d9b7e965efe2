"""What a sweep looks for on validation images before its cells run: the best of a few values of one key.

A try is a cell that ends with `finetune`. Its score is the most validation images that it withstood after any epoch,
which is also what its own run keeps. Test images are never looked at. Where two tries are level, the earlier one wins.
One whose training diverges has lost.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines.sweeps.grid import Cell, Sweep

STAGES = ["finetune"]
WORST = -1.0
Score = Callable[[Cell], float | None]  # None: not finished


def searched(sweep: Sweep, cell: Cell) -> bool:
    return sweep.search is not None and cell.axes[sweep.search.axis] in sweep.search.values


def tries(sweep: Sweep) -> list[Cell]:
    """Of all cells that need one, each once."""
    some = {each.name(): each for cell in sweep.cells for each in tries_for(sweep, cell)}
    return list(some.values())


def tries_for(sweep: Sweep, cell: Cell) -> list[Cell]:
    """Those that decide for this cell: its own axes, but for those of `search.at`."""
    search = sweep.search
    if search is None or not searched(sweep, cell):
        return []
    axes = cell.axes | search.at
    where = next(other for other in sweep.cells if other.axes == axes)
    return [
        replace(where, axes=axes | {search.key: str(value)}, overrides=where.overrides | {search.key: value})
        for value in search.tries
    ]


def settled(sweep: Sweep, cell: Cell, score: Score) -> Cell | None:
    """The cell with what its search has found; None as long as one of its tries is not finished."""
    some = tries_for(sweep, cell)
    scores = [found for each in some if (found := score(each)) is not None]
    if sweep.search is None or not some:
        return cell
    if len(scores) < len(some):
        return None
    best = some[scores.index(max(scores))]
    return replace(cell, found={sweep.search.key: best.overrides[sweep.search.key]})


def validation_accuracy(folder: Path) -> float:
    """The best of all epochs, of the files that a try leaves; of a method without an attack the clean one."""
    with open(folder / "reports" / "training.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    robust = [float(row["val_robust"]) for row in rows if row["val_robust"]]
    return max(robust or [float(row["val_clean"]) for row in rows if row["val_clean"]])
