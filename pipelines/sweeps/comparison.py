"""From the cells of a sweep to one table: mean, standard deviation, and paired tests against the baseline.

Two p-values, for two questions. `p_images` (McNemar, exact): on these test images and these trainings, does one method
withstand the attack where the other does not more often than the reverse? An image counts once, for the method that
withstood it in more of the repetitions: the same image under another seed is no new image. `p_seeds` (paired t-test
over the axis that is averaged): would another seed say the same? The second needs two seeds or more, and is the one to
claim a method on.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from autolora.common.files import read_json, write_text
from autolora.common.statistics import mcnemar
from pipelines.sweeps.grid import COLUMNS, Cell, GridError, Sweep

LEAST_SPREAD = 1e-9  # of accuracies, which are whole numbers over n: below it stands rounding alone


@dataclass(frozen=True)
class Result:
    cell: Cell
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        return read_json(self.folder / "reports" / "robustness.json")

    def has_report(self) -> bool:
        return (self.folder / "reports" / "robustness.json").is_file()

    def flags(self) -> dict[bytes, bool]:
        """Which images stood, by id."""
        array = np.load(self.folder / "reports" / "robust_flags.npy", allow_pickle=False)
        return dict(zip(array["id"].tolist(), array["robust"].tolist(), strict=True))


def table(sweep: Sweep, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each combination of the axes that are not averaged over."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in sweep.cells:
        groups.setdefault(_group(sweep, cell), []).append(cell)
    found = {result.cell.name(): result for result in results}
    return [_row(sweep, cells, found) for cells in groups.values()]


def _group(sweep: Sweep, cell: Cell) -> tuple[str, ...]:
    return tuple(value for axis, value in cell.axes.items() if axis != sweep.over)


def _row(sweep: Sweep, cells: list[Cell], found: dict[str, Result]) -> dict[str, Any]:
    there = [found[cell.name()] for cell in cells if cell.name() in found]
    axes = {axis: value for axis, value in cells[0].axes.items() if axis != sweep.over}
    clean, robust = ([result.report[key] for result in there] for key in ("clean_accuracy", "robust_accuracy"))
    pairs = [(result, found[twin]) for result in there if (twin := _twin(sweep, result.cell)) in found]
    return (
        axes
        | {
            "n": len(there),
            "clean": _mean(clean),
            "clean_sd": _sd(clean),
            "robust": _mean(robust),
            "robust_sd": _sd(robust),
        }
        | (against_baseline(pairs) if pairs and not _is_baseline(sweep, cells[0]) else {})
        | {"missing": len(cells) - len(there)}
    )


def _is_baseline(sweep: Sweep, cell: Cell) -> bool:
    return all(cell.axes[axis] == value for axis, value in sweep.baseline.items())


def _twin(sweep: Sweep, cell: Cell) -> str:
    """The name of the cell that differs in nothing but the baseline's axes."""
    axes = cell.axes | sweep.baseline
    return next((other.name() for other in sweep.cells if sweep.baseline and other.axes == axes), "")


def against_baseline(pairs: Sequence[tuple[Result, Result]]) -> dict[str, Any]:
    ours, theirs = ([result.report["robust_accuracy"] for result in side] for side in zip(*pairs, strict=True))
    return {
        "difference": _mean([a - b for a, b in zip(ours, theirs, strict=True)]),
        "p_images": mcnemar(*discordant([(a.flags(), b.flags()) for a, b in pairs])),
        "p_seeds": paired_t(ours, theirs),
    }


def discordant(pairs: Sequence[tuple[dict[bytes, bool], dict[bytes, bool]]]) -> tuple[int, int]:
    """How many images the one and the other withstood in more of the repetitions; ties are out.

    Both of a pair must have been asked about the same images; another seed may have drawn other ones.
    """
    more: Counter[bytes] = Counter()
    for ours, theirs in pairs:
        if ours.keys() != theirs.keys():
            raise GridError(
                "two cells of one comparison were attacked on different images, and cannot be paired: mend `baseline`; "
                "the cells stay finished"
            )
        more.update({image: ours[image] - theirs[image] for image in ours})
    return sum(count > 0 for count in more.values()), sum(count < 0 for count in more.values())


def paired_t(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """None where the seeds say nothing about others: one alone, or all with the same difference."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        return None
    spread = statistics.stdev(differences)
    if spread < LEAST_SPREAD:
        return None
    from scipy.stats import t

    value = statistics.fmean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * t.sf(abs(value), len(differences) - 1))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def write(sweep: Sweep, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """table.csv, table.md and table.png."""
    files = [folder / f"table.{kind}" for kind in ("csv", "md", "png")]
    write_text(files[0], as_csv(rows))
    write_text(files[1], as_markdown(sweep, rows))
    draw(sweep, rows, files[2])
    return files


def _header(rows: list[dict[str, Any]]) -> list[str]:
    return [*(key for key in rows[0] if key not in COLUMNS), *COLUMNS]


def as_csv(rows: list[dict[str, Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, _header(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    header = _header(rows)
    lines = [f"| {' | '.join(_cell_text(column, row.get(column)) for column in header)} |" for row in rows]
    baseline = ", ".join(f"{axis} = {value}" for axis, value in sweep.baseline.items()) or "none"
    return "\n".join(
        [
            f"# {sweep.title}",
            "",
            f"Percent; mean and standard deviation over {sweep.over or 'nothing'}; compared with {baseline}.",
            "p_images: McNemar, exact, over the same images, each counted once, for the method that withstood it more "
            "often; p_seeds: paired t-test over the repetitions.",
            "",
            f"| {' | '.join(header)} |",
            f"|{'---|' * len(header)}",
            *lines,
            "",
        ]
    )


def _cell_text(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column.startswith("p_"):
        return f"{value:.2g}"
    return f"{100 * value:.2f}" if isinstance(value, float) else str(value)


def _labels(rows: list[dict[str, Any]]) -> list[str]:
    """The axes in which rows differ; all of them where there is one row."""
    axes = [key for key in rows[0] if key not in COLUMNS] if rows else []
    varied = [key for key in axes if len({str(row[key]) for row in rows}) > 1]
    return ["  ".join(str(row[key]) for key in varied or axes) for row in rows]


def draw(sweep: Sweep, rows: list[dict[str, Any]], file: Path) -> None:
    """Clean and robust accuracy of each row with one standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["n"]]
    title, labels = fill(sweep.title, 80), _labels(shown)
    figure = Figure(figsize=(8, 1.4 + 0.2 * title.count("\n") + 0.34 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, colour in (("clean", "#9aa5b1"), ("robust", "#1f6feb")):
        values, spread = [100 * row[key] for row in shown], [100 * (row[f"{key}_sd"] or 0) for row in shown]
        axes.errorbar(values, range(len(shown)), xerr=spread, fmt="o", color=colour, capsize=3, label=key)
    axes.set_yticks(range(len(shown)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy, percent")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside right center")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
