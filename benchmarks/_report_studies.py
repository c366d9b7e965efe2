"""The further studies of docs/results.md: a sweep each, beside the main table, along one more axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from autolora.common.statistics import holm
from benchmarks._report_numbers import Comparison, Group, comparison, of_study, price, seconds_by_machine, with_seeds
from benchmarks._report_pictures import panels
from benchmarks._report_words import (
    STANDARD,
    Facts,
    millions,
    not_yet,
    percent,
    seconds,
    setting,
    table,
    told_of_machines,
)


@dataclass(frozen=True)
class Study:
    """A sweep, and what it asks. `picture` shows accuracies along its axis, where that is a number."""

    sweep: str
    title: str
    question: str
    picture: str = ""


STUDIES = (
    Study(STANDARD, "Standard AutoAttack", "Does the short attack above flatter anyone?"),
    Study("small-rates", "First rate, attacked", "How does accuracy depend on the first rate?", "results-first-rates"),
    Study("small-ranks", "Rank of the branch", "Does the branch's rank matter?", "results-ranks"),
    Study("small-amounts", "Number of training images", "How many images does it take?", "results-amounts"),
    Study("small-sides", "Image side", "What do 64 pixels give that 32 do not?"),
    Study("small-backbones", "Backbones", "What is a robust backbone worth?"),
    Study("small-larger", "A larger network", "Does a larger network say otherwise?"),
)


def further(facts: Facts, study: Study) -> list[str]:
    some = facts.groups(study.sweep)
    if not some:
        return [f"## {study.title}", study.question, not_yet(study.sweep)]
    rows = of_study(facts.rows, study.sweep)
    head, column = last_column(facts, study, some)
    lines = [
        [
            group.data, group.setting.rpartition("=")[2], group.recipe, str(len(group.rows)),
            percent(group.mean("clean"), group.sd("clean")), percent(group.mean("robust"), group.sd("robust")),
            millions(price(rows, group, "forwards")), seconds(seconds_by_machine(rows, group, "processor_seconds")),
            seconds(seconds_by_machine(rows, group, "attack_seconds")), said,
        ]
        for group, said in zip(some, column, strict=True)
    ]  # fmt: skip
    axis = some[0].setting.rpartition("=")[0] or "setting"
    names = ["set", axis, "recipe", "seeds", "clean", "robust", "forwards, millions", "`finetune`, s", "`evaluate`, s"]
    shown = study.picture in panels(facts)
    return [
        f"## {study.title}",
        f"{study.question} {left(facts, study.sweep)}",
        setting(rows),
        told_of_machines(lines),
        table([*names, head], lines),
        f"![{study.title}]({study.picture}.png)" if shown else "",
    ]


def last_column(facts: Facts, study: Study, some: Sequence[Group]) -> tuple[str, list[str]]:
    """What each row is held against: the short attack, or the row before it of its set and recipe."""
    if study.sweep == STANDARD:
        short = {(group.data, group.recipe): group for group in facts.groups()}
        return "robust by `fast`, the same seeds", [
            beside_fast(group, short.get((group.data, group.recipe))) for group in some
        ]
    found = steps(some)
    return "robust, from the one before (McNemar, Holm)", [step(found.get(id(group))) for group in some]


def beside_fast(group: Group, short: Group | None) -> str:
    same = with_seeds([short], group.seeds()) if short else []
    return percent(same[0].mean("robust")) if same else ""


def steps(some: Sequence[Group]) -> dict[int, Comparison]:
    """Of each setting that has one before it, on the same test images and seeds; p corrected for all of them."""
    found: dict[int, Comparison] = {}
    for data, recipe in dict.fromkeys((group.data, group.recipe) for group in some):
        along = [group for group in some if (group.data, group.recipe) == (data, recipe)]
        for before, group in pairwise(along):
            if comparable(group, before):
                found[id(group)] = comparison(group, before, "robust")
    adjusted = holm([one.p for one in found.values()])
    return {key: replace(one, adjusted=p) for (key, one), p in zip(found.items(), adjusted, strict=True)}


def comparable(one: Group, other: Group) -> bool:
    images = {row.images for group in (one, other) for row in group.rows}
    return len(images) == 1 and bool(set(one.seeds()) & set(other.seeds()))


def step(one: Comparison | None) -> str:
    if one is None:
        return ""
    text = f"{100 * one.difference:+.1f} ({one.only_ours}:{one.only_theirs}, p {one.adjusted:.2g})"
    return f"**{text}**" if one.sure() else text


def left(facts: Facts, sweep: str) -> str:
    plan = facts.sweeps.get(sweep)
    there = sum(row.attacked() for row in of_study(facts.rows, sweep))
    return f"{there} of {len(plan.cells)} cells have run." if plan else ""
