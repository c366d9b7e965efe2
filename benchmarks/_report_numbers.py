"""Means, paired tests and prices from the rows of benchmarks/results: everything that docs/results.md calculates."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autolora.common.statistics import holm, mcnemar
from benchmarks._report_cells import Row, unpacked
from pipelines.sweeps.comparison import discordant

SURE = 0.05
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
    adjusted: float = 1.0

    def sure(self) -> bool:
        return self.adjusted < SURE


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


def natural(setting: str) -> tuple[float, str]:
    """Numbers by size."""
    try:
        return float(setting.rpartition("=")[2]), setting
    except ValueError:
        return 0.0, setting


def compared(some: Sequence[Group], baselines: Sequence[str], what: str) -> list[Comparison]:
    """Every recipe against each baseline of its set, by `clean` or `robust`; p corrected for all of them together."""
    found = [
        comparison(ours, theirs, what)
        for ours in some
        for theirs in some
        if theirs.recipe in baselines and theirs.data == ours.data and ours.recipe != theirs.recipe
        if set(ours.seeds()) & set(theirs.seeds())
    ]
    adjusted = holm([one.p for one in found])
    return [Comparison(**vars(one) | {"adjusted": p}) for one, p in zip(found, adjusted, strict=True)]


def comparison(ours: Group, theirs: Group, what: str) -> Comparison:
    """McNemar's exact test; an image counts once, for who is right about it under more of the seeds that both have."""
    shared = sorted(set(ours.seeds()) & set(theirs.seeds()))
    pairs = [(flags(ours, seed, what), flags(theirs, seed, what)) for seed in shared]
    images = {row.images for group in (ours, theirs) for row in group.rows if row.seed in shared}
    if len(images) > 1:
        raise Mixed(f"{ours.data}: {ours.recipe} and {theirs.recipe} were attacked on different images")
    only_ours, only_theirs = discordant(pairs)
    shares = [statistics.fmean(a.values()) - statistics.fmean(b.values()) for a, b in pairs]
    return Comparison(
        ours.data, ours.recipe, theirs.recipe, len(shared), statistics.fmean(shares),
        only_ours, only_theirs, mcnemar(only_ours, only_theirs),
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


def price(rows: Iterable[Row], group: Group, name: str) -> float | None:
    """Of one network, in `forwards` or `processor_seconds`. The best try is the network: a search costs its tries."""
    searched = tries(rows, group)
    if not searched:
        return group.mean(name)
    values = [getattr(row, name) for row in searched]
    return None if None in values else float(sum(values))


def front(some: Sequence[Group], cost: Callable[[Group], float | None]) -> list[Group]:
    """Those to which no other is at least as robust for less, from the cheapest on."""
    priced = sorted(
        ((cost(group), -(group.mean("robust") or 0.0), group) for group in some if cost(group) is not None),
        key=lambda each: each[:2],
    )
    found: list[Group] = []
    for _, lost, group in priced:
        if not found or -lost > (found[-1].mean("robust") or 0.0):
            found.append(group)
    return found
