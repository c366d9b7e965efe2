"""The table of benchmarks.screening: each change beside the default, on the same images."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

from scipy.stats import t as student_t

from autolora.common.statistics import holm
from benchmarks._screening_rows import CHANGES, DEFAULT, MEASURES, Row, paired, read
from benchmarks.rate_rules import CUTS, NETS, SETS
from pipelines.sweeps.comparison import paired_t

FEWEST = 3  # sets, or seeds, to say how far they are apart


def table(args: argparse.Namespace) -> None:
    """Differences in points, and p after Holm's correction for every test in the table; * is below 0.05."""
    rows = [row for row in read() if (row.on, row.epochs) == (args.on, args.epochs)]
    tests = list(comparisons(rows))
    adjusted = iter(holm([p for *_, p in tests]))
    print("| network, set | change | seeds | clean | robust | seconds |\n|---|---|---|---|---|---|")
    over: list[str] = []
    for group, both_tests in itertools.groupby(tests, lambda test: test[:3]):
        (net, name, change), two = group, list(both_tests)
        said = [f"{difference:+.1f} (p {p:.2g}){'*' * (p < 0.05)}" for (*_, difference, _), p in zip(two, adjusted)]
        pairs = [pair for pair in both(rows, net, change) if pair[0].data == name]
        cost = fmean(ours.seconds for _, ours in pairs) / fmean(base.seconds for base, _ in pairs)
        print(f"| {net}, {name} | {change} | {len(pairs)} | {' | '.join(said)} | {cost:.2f} |")
        gap = fmean(100 * base.train_accuracy - base.clean for base, _ in pairs)
        before = " / ".join(f"{p:.2g}" for *_, p in two)
        over.append(f"{net}, {name}, {change}: gap of the default {gap:.0f}, p before correction {before}")
        if len(pairs) >= FEWEST:
            of_seeds = [paired_t(*([getattr(row, what) for row in one] for one in zip(*pairs))) for what in MEASURES]
            told = " / ".join("-" if p is None else f"{p:.2g}" for p in of_seeds)
            over.append(f"{net}, {name}, {change}: p over seeds {told}")
    print("\n".join(["", *over, *on_unlike_machines(rows)]))
    print("\nOver sets, with the 95 % interval of the mean (t, each set one value: the mean of its seeds).\n")
    print("| network | change | sets | clean | robust | seconds |\n|---|---|---|---|---|---|")
    for net, change in itertools.product(NETS, list(CHANGES)[1:]):
        pairs = both(rows, net, change)
        sets = [[pair for pair in pairs if pair[0].data == name] for name in SETS]
        if len(there := [some for some in sets if some]) >= FEWEST:
            rises = (
                [fmean(getattr(b, what) - getattr(a, what) for a, b in some) for some in there] for what in MEASURES
            )
            said = [f"{mean:+.1f} ± {half:.1f}" for mean, half in map(mean_and_half_interval, rises)]
            cost = fmean(ours.seconds / base.seconds for base, ours in pairs)
            print(f"| {net} | {change} | {len(there)} | {' | '.join(said)} | {cost:.2f} |")


def on_unlike_machines(rows: Sequence[Row]) -> list[str]:
    """Training attacks in bfloat16 where a processor has it: such pairs differ by more than the change."""
    said: dict[tuple[str, str, str], list[int]] = {}
    for net, change in itertools.product(NETS, list(CHANGES)[1:]):
        for base, ours in both(rows, net, change):
            if base.machine != ours.machine:
                said.setdefault((net, base.data, change), []).append(ours.seed)
    return [f"{', '.join(which)}: not of one kind of machine, seed {seeds}" for which, seeds in said.items()]


def both(rows: Sequence[Row], net: str, change: str) -> list[tuple[Row, Row]]:
    """The default and the change, for each set and seed that has both."""
    base, ours = (
        {(row.data, row.seed): row for row in rows if (row.net, row.change) == (net, which)}
        for which in (DEFAULT, change)
    )
    return [(base[cell], ours[cell]) for cell in sorted(base.keys() & ours.keys())]


def mean_and_half_interval(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def comparisons(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, str, float, float]]:
    """Network, set, change, measure, the difference to the default in points, and its two-sided p."""
    for net, name, change in itertools.product(NETS, CUTS, list(CHANGES)[1:]):
        base, ours = (
            {row.seed: row for row in rows if row.key()[:3] == (net, name, which)} for which in (DEFAULT, change)
        )
        if shared := sorted(base.keys() & ours.keys()):
            for what in MEASURES:
                before, now = ([some[seed] for seed in shared] for some in (base, ours))
                yield net, name, change, what, *paired(before, now, what)
