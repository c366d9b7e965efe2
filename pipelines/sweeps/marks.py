"""Which cells of a sweep are finished: a file in each cell's folder says so.

    marks = Marks(work_root, plan.name, commit)
    marks.finished(cell)

A mark is of one cell at one commit: where either was another, the cell is not finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autolora.common.files import AtWork, locked, read_json, write_json, write_text
from pipelines.sweeps import search
from pipelines.sweeps.grid import Cell, GridError, Sweep

DONE, LOST = "cell.json", "diverged.json"
KEPT = "params.yaml"  # what a rebuild leaves in any case (pipelines/workspace/results.py)


@dataclass(frozen=True)
class Marks:
    root: Path  # `.work` of the clone
    sweep: str
    commit: str

    def place(self, cell: Cell) -> Path:
        return self.root / "sweeps" / self.sweep / cell.name()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Two sweeps of one name would take each other's cells for those of another commit, and remove them."""
        try:
            with locked(self.root / "sweeps" / self.sweep / ".lock"):
                yield
        except AtWork:
            raise GridError(
                f"sweep {self.sweep} is at work already: wait for it, or give the file another name"
            ) from None

    def finished(self, cell: Cell) -> bool:
        return self._says(cell, DONE)

    def lost(self, cell: Cell) -> bool:
        """A try at a value with which training diverges: an answer too, and not asked for again."""
        return self._says(cell, LOST)

    def finish(self, cell: Cell) -> str | None:
        """Call a built cell done, or say why not: a worker's `.work` may be storage that only the worker sees."""
        place = self.place(cell)
        if not (place / KEPT).is_file():
            return (
                f"the cell's files are not visible here: AUTOLORA_WORK must be storage that both machines see ({place})"
            )
        write_json(place / DONE, self._record(cell))
        return None

    def lose(self, cell: Cell, params: dict[str, Any]) -> None:
        write_text(self.place(cell) / KEPT, yaml.safe_dump(params))
        write_json(self.place(cell) / LOST, self._record(cell))

    def forget(self, cell: Cell) -> None:
        """Before it is built, or what an earlier commit has left, reports too, would pass for this one's."""
        shutil.rmtree(self.place(cell), ignore_errors=True)

    def settled(self, plan: Sweep, cell: Cell) -> Cell | None:
        """The cell with what its search has found, as soon as all of its tries are finished."""
        return None if self.hopeless(plan, cell) else search.settled(plan, cell, self._score)

    def hopeless(self, plan: Sweep, cell: Cell) -> bool:
        tries = search.tries_for(plan, cell)
        return bool(tries) and all(self.lost(each) for each in tries)

    def _score(self, cell: Cell) -> float | None:
        if self.lost(cell):
            return search.WORST
        return search.validation_accuracy(self.place(cell)) if self.finished(cell) else None

    def _says(self, cell: Cell, name: str) -> bool:
        file = self.place(cell) / name
        return file.is_file() and read_json(file) == self._record(cell)

    def _record(self, cell: Cell) -> dict[str, Any]:
        overrides = cell.overrides | cell.found
        return {"axes": cell.axes, "preset": cell.preset, "overrides": overrides, "commit": self.commit}
