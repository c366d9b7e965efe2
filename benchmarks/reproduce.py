"""Does one cell of the table come out the same in a clean clone, to the digit?

    python -m benchmarks.reproduce CELL

CELL is a name in benchmarks/results/small-*.csv. The repository is cloned, without any result or cache, at the commit
that the table names; the images are copied in, and the sweep runs that one cell. What it finds is compared with the
table image by image and epoch by epoch, and written to benchmarks/results/reproduced.json. Give it the same number of
threads (OMP_NUM_THREADS): with another, sums are rounded otherwise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from autolora.common.command_line import Command
from autolora.common.files import read_json, write_json
from benchmarks import _report_cells as cells
from benchmarks._report_cells import Row, unpacked
from benchmarks.small_sets import FOLDER

ROOT = Path(__file__).resolve().parent.parent
FILE = cells.RESULTS / "reproduced.json"


def again(row: Row, folder: Path) -> Row:
    """The cell as a clone without a cache computes it."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    subprocess.run(["git", "checkout", "--quiet", row.commit], cwd=clone, check=True)
    shutil.copytree(ROOT / FOLDER, clone / FOLDER)
    command = [sys.executable, "-m", "pipelines.sweep", row.study, "--only", row.cell]
    subprocess.run(command, cwd=clone, check=True, env=os.environ | {"PYTHONPATH": str(clone)})
    return next(one for one in cells.collect(clone) if one.cell == row.cell)


def compared(row: Row, new: Row) -> dict[str, Any]:
    """Of each figure both values."""
    return {
        "cell": row.cell,
        "commit": row.commit,
        "threads": new.threads,
        "clean": [row.clean, new.clean],
        "robust": [row.robust, new.robust],
        **{f"{what}_differ": differ(row, new, what) for what in ("clean_flags", "robust_flags")},
        "training_equal": row.val_robust_by_epoch == new.val_robust_by_epoch and row.val_clean == new.val_clean,
    }


def differ(row: Row, new: Row, what: str) -> int:
    before, now = (unpacked(getattr(one, what), one.n or 0) for one in (row, new))
    return int((before != now).sum())


def cell(name: str) -> Row:
    found = [row for row in cells.read(ROOT / cells.RESULTS) if row.cell == name and row.attacked()]
    if not found:
        raise argparse.ArgumentTypeError(f"{name} is no attacked cell of {cells.RESULTS}/{cells.PREFIX}*.csv")
    return found[0]


def main() -> None:
    parser = Command(__doc__, reads=f"{cells.RESULTS}, {FOLDER}", writes=str(FILE))
    parser.add_argument("cell", type=cell)
    row: Row = parser.parse_args().cell
    with tempfile.TemporaryDirectory(prefix="reproduce-") as folder:
        result = compared(row, again(row, Path(folder)))
    known = read_json(ROOT / FILE) if (ROOT / FILE).is_file() else []
    write_json(ROOT / FILE, [one for one in known if one["cell"] != row.cell] + [result])
    print(result)


if __name__ == "__main__":
    main()
