"""Means, paired tests and prices from the rows of benchmarks/results: everything that docs/results.md calculates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from autolora.common.statistics import holm, mcnemar
from benchmarks._report_cells import Row, unpacked
from pipelines.sweeps.comparison import discordant, paired_t

SURE = 0.05
SEEDS = 3  # fewer say nothing of others
MOST = 2 / 3  # of the recipes of a set
SEARCHED = "finetune.rate="  # the setting of a try


class Mixed(ValueError):
    """Cells that should have been attacked on the same images were not."""


@dataclass(frozen=True)
class Group:
    """The seeds of one recipe on one set."""

    data: str
    recipe: str
    setting: str
    rows: tuple[Row, ...]

    def values(self, name: str) -> list[float]:
        return [value for row in self.rows if (value := getattr(row, name)) is not None]

    def mean(self, name: str) -> float | None:
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def sd(self, name: str) -> float | None:
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None

    def seeds(self) -> list[int]:
        return [row.seed for row in self.rows]


@dataclass(frozen=True)
class Comparison:
    """One recipe against another on the images of one set; above zero the first one withstands more."""

    data: str
    recipe: str
    baseline: str
    seeds: int
    difference: float
    only_ours: int
    only_theirs: int
    p: float
    p_seeds: float | None = None  # would other seeds say the same? None where too few were trained
    adjusted: float = 1.0

    def sure(self) -> bool:
        """On these images, of these trainings; and the means must not say the opposite of the count."""
        return self.adjusted < SURE and (self.only_ours - self.only_theirs) * self.difference > 0

    def more(self) -> bool:
        return self.sure() and self.difference > 0

    def less(self) -> bool:
        return self.sure() and self.difference < 0


def of_study(rows: Iterable[Row], study: str) -> list[Row]:
    return [row for row in rows if row.study == study]


def groups(rows: Iterable[Row], order: Sequence[str] = ()) -> list[Group]:
    """Attacked cells by set, setting and recipe; sets and recipes in the order of the sweep."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.attacked():
            found.setdefault((row.data, row.setting, row.recipe), []).append(row)
    place = {name: number for number, name in enumerate(order)}
    keys = sorted(found, key=lambda key: (place.get(key[0], 99), key[0], natural(key[1]), place.get(key[2], 99)))
    return [Group(d, r, s, tuple(sorted(found[d, s, r], key=lambda row: row.seed))) for d, s, r in keys]


def at_shared_seeds(some: Sequence[Group]) -> list[Group]:
    """With the same seeds, so that they can be set beside one another: as many as most recipes have; the few that lack
    one of them are left out."""
    choices = [with_seeds(some, group.seeds()) for group in sorted(some, key=lambda group: -len(group.rows))]
    return next((left for left in choices if len(left) >= MOST * len(some)), max(choices, key=len, default=[]))


def with_seeds(some: Sequence[Group], seeds: Sequence[int]) -> list[Group]:
    return [
        replace(group, rows=tuple(row for row in group.rows if row.seed in seeds))
        for group in some
        if set(seeds) <= set(group.seeds())
    ]


def natural(setting: str) -> tuple[float, str]:
    """Numbers by size."""
    try:
        return float(setting.rpartition("=")[2]), setting
    except ValueError:
        return 0.0, setting


def compared(some: Sequence[Group], baselines: Sequence[str], what: str) -> list[Comparison]:
    """Every recipe against each baseline of its set, by `clean` or `robust`; p corrected for all of them together.
    Two baselines are tested once, and shown from both sides."""
    found = [
        comparison(ours, theirs, what)
        for ours in some
        for theirs in some
        if theirs.recipe in baselines and theirs.data == ours.data and ours.recipe != theirs.recipe
        if set(ours.seeds()) & set(theirs.seeds())
    ]
    return corrected(found)


def corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """For all of these together; of two that are one test from both sides, once."""
    tests = {pair_of(one): one.p for one in found}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    return [replace(one, adjusted=adjusted[pair_of(one)]) for one in found]


def pair_of(one: Comparison) -> tuple[str, frozenset[str]]:
    return one.data, frozenset((one.recipe, one.baseline))


def beside(leader: Group, others: Iterable[Group], what: str) -> list[Group]:
    """Those that are not surely less right than the first one (Holm, over the tests of this call)."""
    rivals = [other for other in others if other is not leader and set(other.seeds()) & set(leader.seeds())]
    tests = [comparison(leader, other, what) for other in rivals]
    adjusted = holm([one.p for one in tests])
    return [other for other, one, p in zip(rivals, tests, adjusted) if not replace(one, adjusted=p).more()]


def comparison(ours: Group, theirs: Group, what: str) -> Comparison:
    """McNemar's exact test; an image counts once, for who is right about it under more of the seeds that both have."""
    shared = sorted(set(ours.seeds()) & set(theirs.seeds()))
    pairs = [(flags(ours, seed, what), flags(theirs, seed, what)) for seed in shared]
    images = {row.images for group in (ours, theirs) for row in group.rows if row.seed in shared}
    if len(images) > 1:
        raise Mixed(f"{ours.data}: {ours.recipe} and {theirs.recipe} were attacked on different images")
    only_ours, only_theirs = discordant(pairs)
    first, second = ([statistics.fmean(some.values()) for some in side] for side in zip(*pairs, strict=True))
    return Comparison(
        ours.data, ours.recipe, theirs.recipe, len(shared), statistics.fmean(first) - statistics.fmean(second),
        only_ours, only_theirs, mcnemar(only_ours, only_theirs),
        paired_t(first, second) if len(shared) >= SEEDS else None,
    )  # fmt: skip


def flags(group: Group, seed: int, what: str) -> dict[bytes, bool]:
    row = next(row for row in group.rows if row.seed == seed)
    text, n = getattr(row, f"{what}_flags"), row.n
    return {str(i).encode(): bool(right) for i, right in enumerate(unpacked(text, n or 0))}


# --- the price -------------------------------------------------------------------------------------------------------


def tries(rows: Iterable[Row], group: Group) -> list[Row]:
    """Of the search that found this recipe's rate on this set; none where it was not searched."""
    return [
        row
        for row in rows
        if (row.data, row.recipe) == (group.data, group.recipe) and row.setting.startswith(SEARCHED)
        if not row.attacked()
    ]


def diverged(rows: Iterable[Row], group: Group) -> list[Row]:
    return [row for row in tries(rows, group) if row.epochs == 0]


def price(rows: Iterable[Row], group: Group, name: str) -> float | None:
    """Of one network, in `forwards` or `processor_seconds`. The best try is the network: a search costs its tries,
    but for those that diverged, of which nothing is known.
    """
    searched = [row for row in tries(rows, group) if row.epochs]
    if not searched:
        return group.mean(name)
    values = [getattr(row, name) for row in searched]
    return None if None in values else float(sum(values))


def seconds_by_machine(rows: Iterable[Row], group: Group, name: str) -> dict[str, float]:
    """Of one network, as a price is; no mean is over machines that are not alike."""
    searched = [row for row in tries(rows, group) if row.epochs] if name == "processor_seconds" else []
    machines = sorted({row.machine or "" for row in searched or group.rows})
    if searched:
        total = price(searched, group, name)
        return {machines[0]: total} if len(machines) == 1 and total is not None else {}
    found = {machine: on(group, machine).mean(name) for machine in machines}
    return {machine: value for machine, value in found.items() if value is not None}


def on(group: Group, machine: str) -> Group:
    return replace(group, rows=tuple(row for row in group.rows if (row.machine or "") == machine))


def front(some: Sequence[Group], cost: Callable[[Group], float | None]) -> list[tuple[Group, float | None]]:
    """From the cheapest on, those that withstand surely more than the dearest step before them, with that test's p."""
    priced = [(price, group) for group in some if (price := cost(group)) is not None]
    found: list[tuple[Group, float | None]] = []
    for _, group in sorted(priced, key=lambda each: (each[0], -(each[1].mean("robust") or 0.0))):
        if not found:
            found.append((group, None))
        elif set(group.seeds()) & set(found[-1][0].seeds()):
            one = comparison(group, found[-1][0], "robust")
            if replace(one, adjusted=one.p).more():
                found.append((group, one.p))
    return found
