"""The first rate that finds itself, beside the rates of a grid that benchmarks.screening ran."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import fmean

from autolora.common.statistics import holm
from benchmarks._screening_rows import BEFORE, MEASURES, RATES, SEARCHED, Row, at_rate, paired, read
from benchmarks.rate_rules import NETS, SETS


def rates() -> None:
    """Clean / PGD-20 over the seeds that have all of them; how far what is found is from the best of the grid."""
    rows = read()
    for change in SEARCHED:
        if cells := list(grids(rows, change)):
            print(f"\n{change}\n")
            show_rates(cells, change)
            show_each_seed(cells, change)
            show_a_search(cells, change)


def show_rates(cells: Sequence[tuple[str, str, int, dict[str, list[Row]]]], change: str) -> None:
    before = at_rate(change, BEFORE)
    tests = [[paired(cell[before], cell[change], what) for what in MEASURES] for *_, cell in cells]
    adjusted = iter(holm([p for of_cell in tests for _, p in of_cell]))
    print(f"| network, set, epochs | seeds | {' | '.join(RATES)} | found | to the best | to {BEFORE} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (net, name, epochs, cell), of_cell in zip(cells, tests, strict=True):
        means = {
            which: [fmean(getattr(row, what) for row in some) for what in MEASURES] for which, some in cell.items()
        }
        found = means.pop(change)
        best = [max(every) for every in zip(*means.values())]
        shown = [
            f"{clean:.1f} / {robust:.1f}{how_many_diverged(cell[which])}"
            for which, (clean, robust) in [*means.items(), (change, found)]
        ]
        behind = " / ".join(f"{mine - theirs:+.1f}" for mine, theirs in zip(found, best))
        said = " / ".join(f"{rise:+.1f} (p {p:.2g}){'*' * (p < 0.05)}" for (rise, _), p in zip(of_cell, adjusted))
        print(f"| {net}, {name}, {epochs} | {len(cell[change])} | {' | '.join(shown)} | {behind} | {said} |")


def show_each_seed(cells: Sequence[tuple[str, str, int, dict[str, list[Row]]]], change: str) -> None:
    """In how many figures of single seeds what is found is no more than a point below the best of the grid."""
    behind: dict[tuple[str, int], list[float]] = {}
    for net, _, epochs, cell in cells:
        for at, found in enumerate(cell[change]):
            for what in MEASURES:
                best = max(getattr(cell[at_rate(change, rate)][at], what) for rate in RATES)
                behind.setdefault((net, epochs), []).append(getattr(found, what) - best)
    print()
    for (net, epochs), some in behind.items():
        near, worst = sum(one >= -1 for one in some), -min(some)
        print(f"{net}, {epochs} epochs, seed by seed: {near} of {len(some)} within a point; at most {worst:.1f} below")


def show_a_search(cells: Sequence[tuple[str, str, int, dict[str, list[Row]]]], change: str) -> None:
    """What is found beside what a search of the grid gives: the rate that the other seeds, in the mean, like best."""
    searched: dict[tuple[str, int], list[tuple[Row, Row, list[Row]]]] = {}
    for net, _, epochs, cell in cells:
        grid = [cell[at_rate(change, rate)] for rate in RATES]
        for at, found in enumerate(cell[change] if len(cell[change]) > 1 else ()):
            liked = [mean_of_others(rows, at) for rows in grid]
            here = [rows[at] for rows in grid]
            searched.setdefault((net, epochs), []).append((found, here[liked.index(max(liked))], here))
    for (net, epochs), some in searched.items():
        rises = [fmean(getattr(found, what) - getattr(one, what) for found, one, _ in some) for what in MEASURES]
        near = sum(
            getattr(one, what) >= max(getattr(row, what) for row in grid) - 1
            for _, one, grid in some for what in MEASURES
        )  # fmt: skip
        print(
            f"{net}, {epochs} epochs, beside the rate that the other seeds like best: "
            f"{rises[0]:+.1f} / {rises[1]:+.1f}; that one is within a point in {near} of {len(MEASURES) * len(some)}"
        )


def mean_of_others(rows: Sequence[Row], at: int) -> tuple[float, float]:
    """Robust accuracy over all seeds but one; the clean one decides between equals, as in every search here."""
    others = [row for i, row in enumerate(rows) if i != at]
    return fmean(row.robust for row in others), fmean(row.clean for row in others)


def how_many_diverged(rows: Sequence[Row]) -> str:
    count = sum(row.diverged for row in rows)
    return f" ({count} diverged)" if count else ""


def grids(rows: Sequence[Row], change: str) -> Iterator[tuple[str, str, int, dict[str, list[Row]]]]:
    """Each network, set and number of epochs, with the rows of every seed that has the change and its whole grid."""
    there = {row.key()[:-1]: row for row in rows if row.on == "select"}
    asked = (*(at_rate(change, rate) for rate in RATES), change)
    for net, name, epochs in itertools.product(NETS, SETS, sorted({row.epochs for row in rows})):
        seeds = [
            seed for seed in sorted({row.seed for row in rows})
            if all((net, name, which, epochs, seed) in there for which in asked)
        ]  # fmt: skip
        if seeds:
            yield (
                net,
                name,
                epochs,
                {which: [there[net, name, which, epochs, seed] for seed in seeds] for which in asked},
            )
