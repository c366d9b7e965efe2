"""docs/expectations.md and the README's table, from the rows of benchmarks/results."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks._report_numbers import (
    Comparison,
    Group,
    compared,
    comparison,
    seconds_by_machine,
)
from benchmarks._report_studies import STUDIES, further
from benchmarks._report_words import (
    AGAINST,
    BASELINES,
    IN_WORDS,
    MAIN,
    SEARCHED,
    Facts,
    by_data,
    hand,
    join,
    listed,
    not_yet,
    percent,
    recipes_in_words,
    seconds,
    seeds_in_words,
    setting,
    span,
    table,
    told_of_machines,
)

LEADING = ("natural", "vanilla", "best")  # without which the README says nothing
ENOUGH_SETS = 3
ONE_SEED = "Where the table names no seeds there is one, and another may say otherwise."


def expectations(facts: Facts, before: str) -> str:
    return join(
        [
            "# What to expect",
            "<!-- Made by `uv run python -m benchmarks.report`. Write between the marks alone. -->",
            "For people who wonder whether to start. The tables come from the same cells as [results.md](results.md): "
            "few small images, and the small backbone that ships. What larger images and a larger backbone give, this "
            "page does not say. Where the text has numbers of other runs, it says of which.",
            "## In short",
            hand(before, "In short"),
            "## What robustness costs in clean accuracy",
            *paid(facts),
            "## How long it takes",
            *duration(facts),
            "## How many images",
            *asked(facts, "small-amounts"),
            "## Which backbone",
            *asked(facts, "small-backbones"),
            "## When not to bother",
            *not_worth(facts),
        ]
    )


def pairs(facts: Facts) -> list[tuple[Group, Group]]:
    """Natural fine-tuning and the default, by set."""
    found = []
    for some in by_data(facts.groups()).values():
        named = {group.recipe: group for group in some}
        if "natural" in named and "best" in named:
            found.append((named["natural"], named["best"]))
    return found


def paid(facts: Facts) -> list[str]:
    lines = []
    for plain, ours in pairs(facts):
        one = comparison(plain, ours, "clean")
        lines.append([
            plain.data, percent(plain.mean("clean")), percent(ours.mean("clean")), f"{100 * one.difference:.1f}",
            f"{one.only_ours}:{one.only_theirs} (p {one.p:.2g}{which_seeds(plain, ours)})",
            percent(plain.mean("robust")), percent(ours.mean("robust")),
        ])  # fmt: skip
    if not lines:
        return [not_yet(MAIN)]
    head = ["set", "natural: clean", "default: clean", "points paid", "right by one alone", "natural: robust"]
    return [
        "Images that the one reads rightly and the other does not are counted in the fifth column (McNemar, exact, "
        "over images and not over seeds, not corrected). Where it names seeds, the points are of those, and the means "
        "of all.",
        table([*head, "default: robust"], lines),
    ]


def duration(facts: Facts) -> list[str]:
    chosen = [group for group in facts.groups() if group.recipe in ("best", "natural")]
    lines = [
        [group.data, group.recipe, str(group.rows[0].side), span(row.train for row in group.rows),
         str(max(row.epochs for row in group.rows)),
         seconds(seconds_by_machine(facts.main, group, "processor_seconds")),
         seconds(seconds_by_machine(facts.main, group, "attack_seconds"))]
        for group in chosen if group.mean("processor_seconds") is not None
    ]  # fmt: skip
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Processor seconds on one core, the natural twin's among them: to train, and to attack all test images "
        "(APGD-CE and APGD-T). Time grows with images, epochs and pixels; for your own images "
        "`uv run python -m stages.estimate` says it beforehand.",
        told_of_machines(lines),
        table(["set", "recipe", "side", "training images", "epochs", "`finetune`, s", "`evaluate`, s"], lines),
    ]


def asked(facts: Facts, sweep: str) -> list[str]:
    study = next(study for study in STUDIES if study.sweep == sweep)
    return further(facts, study)[1:]


def not_worth(facts: Facts) -> list[str]:
    heads = {group.data: group for group in facts.groups() if group.recipe == "linear"}
    lines = []
    for _, ours in pairs(facts):
        clean, robust = ours.mean("clean") or 0.0, ours.mean("robust") or 0.0
        head = heads.get(ours.data)
        one = comparison(ours, head, "robust") if head and shared_seeds(head, ours) else None
        where = which_seeds(head, ours) if head else ""
        lines.append([
            ours.data, percent(guess(facts, ours.data)), percent(clean), percent(robust),
            percent(robust / clean if clean else None),
            "" if one is None
            else f"{100 * one.difference:+.1f} ({one.only_ours}:{one.only_theirs}, p {one.p:.2g}{where})",
        ])  # fmt: skip
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Where the head alone is as robust as the whole network, tune the head: it costs a tenth. And do not start "
        "where fewer images withstand the attack than one constant answer gets right (the share of the most frequent "
        "class), or than your service can live with. Both are in this table, for the default (McNemar, exact, not "
        "corrected).",
        table(
            [
                "set",
                "most frequent class",
                "clean",
                "robust",
                "share of right answers that withstand the attack, %",
                "over a linear head",
            ],
            lines,
        ),
    ]


def shared_seeds(some: Group, others: Group) -> list[int]:
    return sorted(set(some.seeds()) & set(others.seeds()))


def which_seeds(theirs: Group, ours: Group) -> str:
    """A comparison is of those that both have: said where they are not all that a row's means are of."""
    shared = shared_seeds(theirs, ours)
    return "" if shared == sorted(ours.seeds()) == sorted(theirs.seeds()) else f", {seeds_in_words(shared)}"


def guess(facts: Facts, data: str) -> float | None:
    """Of the test part, which is the same in all cells of a set."""
    return next((row.guess for row in facts.main if row.data == data and row.guess is not None), None)


# --- README.md -------------------------------------------------------------------------------------------------------


def leading_sets(facts: Facts) -> list[str]:
    """Sets on which at least one seed of all main recipes has run."""
    some = by_data(facts.groups())
    return [data for data, of in some.items() if set(LEADING) <= {group.recipe for group in of}]


def readme(facts: Facts) -> str:
    """Empty until enough has run."""
    sets = leading_sets(facts)
    if len(sets) < ENOUGH_SETS:
        return ""
    groups = [group for group in facts.groups() if group.data in sets]
    names = [
        name
        for name in [*IN_WORDS, *sorted({group.recipe for group in groups} - set(IN_WORDS))]
        if len({group.data for group in groups if group.recipe == name}) >= ENOUGH_SETS
    ]
    shown = [group for group in groups if group.recipe in names]
    known = {(group.data, group.recipe): group for group in shown}
    lines = [[name, *(both(known.get((data, name))) for data in sets)] for name in names]
    return join(
        [
            "## On few images",
            few_images(shown),
            setting([row for group in shown for row in group.rows]),
            table(["recipe", *(head_of(groups, data) for data in sets)], lines),
            recipes_in_words(dict.fromkeys([*names, *(group.recipe for group in groups if group.recipe in BASELINES)])),
            "![Robust accuracy over the cost of training](docs/results-cost.png)",
            claim_in_short(facts),
        ]
    ).rstrip()


def few_images(some: Sequence[Group]) -> str:
    rows = [row for group in some for row in group.rows]
    return (
        "Clean / robust accuracy in percent of n test images, the mean where a cell names several seeds, after "
        f"fine-tuning the backbone that ships on {span(row.train for row in rows)} images. More, with tests and costs: "
        "[results.md](docs/results.md); what it means for you: [expectations.md](docs/expectations.md)."
    )


def head_of(groups: Sequence[Group], data: str) -> str:
    rows = [row for group in groups if group.data == data for row in group.rows]
    side, threat, n = ({getattr(row, name) for row in rows} for name in ("side", "threat", "n"))
    return f"{data}, {listed(side)} px, {listed(threat)}, n = {listed(n)}"


def both(group: Group | None) -> str:
    if group is None:
        return ""
    seeds = f" ({len(group.rows)} seeds)" if len(group.rows) > 1 else ""
    return f"{percent(group.mean('clean'))} / {percent(group.mean('robust'))}{seeds}"


def claim_in_short(facts: Facts) -> str:
    """Against searched rates, TRADES at a published one where no search has run, and TRADES with the default's rule."""
    sets = leading_sets(facts)
    ran = {(group.data, group.recipe) for group in facts.groups()}
    found = {what: compared(facts.groups(), AGAINST, what) for what in ("robust", "clean")}
    everywhere = all((data, "vanilla-searched") in ran for data in sets)
    lines = []
    for baseline in (*SEARCHED, *(() if everywhere else ("vanilla",)), "vanilla-found"):
        gains = [
            points_of([one for one in some if (one.recipe, one.baseline) == ("best", baseline)])
            for some in found.values()
        ]
        if all(gains):
            lines.append([f"`{baseline}`", *gains])
    missing = [f"`{name}`" for name in SEARCHED if any((data, name) not in ran for data in sets)]
    once = all(one.seeds == 1 for some in found.values() for one in some)
    said = [
        "By default (`best`) nothing is searched. Points by which it differs, on the seeds that both have, from the "
        "set with the least to that with the most; p < 0.05 after Holm is sure.",
        "Each was trained once: another seed may say otherwise." if once else ONE_SEED,
        *([f"Searched, but not on all sets yet: {listed(missing)}."] if missing else []),
    ]
    return f"{' '.join(said)}\n\n{table(['default, against', 'robust accuracy', 'clean accuracy'], lines)}"


def points_of(some: Sequence[Comparison]) -> str:
    """From the least to the most, and on how many sets it is sure; nothing of no comparison."""
    if not some:
        return ""
    values = sorted(100 * one.difference for one in some)
    gained = " to ".join(f"{value:+.1f}" for value in dict.fromkeys((values[0], values[-1])))
    counts = {"more": sum(one.more() for one in some), "less": sum(one.less() for one in some)}
    sure = ", ".join(f"surely {word} on {count}" for word, count in counts.items() if count)
    sets = "1 set" if len(some) == 1 else f"{len(some)} sets"
    return f"{gained} ({f'{sure} of' if sure else 'no sure difference on'} {sets})"
