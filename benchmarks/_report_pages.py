"""docs/results.md and docs/expectations.md, and the README's table, from the rows of benchmarks/results.

Every sentence that is made here is true of whatever numbers there are. What a person concludes stands between two
marks, and is kept as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks._report_cells import Row, series
from benchmarks._report_numbers import (
    Comparison,
    Group,
    compared,
    front,
    groups,
    of_study,
    price,
    tries,
)
from benchmarks._report_pictures import panels
from pipelines.sweeps.grid import Sweep

MAIN, STANDARD = "small-table", "small-standard"
BASELINES = ("vanilla", "vanilla-found", "vanilla-searched", "twins-searched")
CLAIM = ("autolora2024-paper", "autolora2024-released", "best")  # AutoLoRa, three ways
LEADING = ("natural", "vanilla", "best")  # without which the README says nothing
SEARCHED = ("vanilla-searched", "twins-searched")
ENOUGH_SETS = 3
BY_HAND, END = "<!-- written by hand -->", "<!-- end of what is written by hand -->"


@dataclass(frozen=True)
class Study:
    """One further axis: a sweep of its own, and what it asks."""

    sweep: str
    title: str
    question: str


STUDIES = (
    Study(STANDARD, "Standard AutoAttack", "Does the short attack above flatter anyone?"),
    Study("small-rates", "First rate, attacked", "How does robust accuracy depend on the first rate?"),
    Study("small-amounts", "Number of training images", "How many images does it take?"),
    Study("small-sides", "Image side", "What do 64 pixels give that 32 do not?"),
    Study("small-backbones", "Backbones", "What is a robust backbone worth?"),
    Study("small-larger", "A larger network", "Does a larger network say otherwise?"),
)
NOT_POSSIBLE = (
    "**Rank.** The branch's rank is 8, and no setting changes it, so ranks from 1 to 32 were not compared.",
    "**Another machine.** None was at hand: how far another processor's numbers lie from these is not known.",
)


@dataclass(frozen=True)
class Facts:
    """All that a page is made from."""

    rows: Sequence[Row]
    sweeps: dict[str, Sweep]  # by name, as far as presets/sweeps has them
    reproduced: Sequence[dict[str, Any]] = ()

    @property
    def main(self) -> list[Row]:
        return of_study(self.rows, MAIN)

    @property
    def order(self) -> list[str]:
        plan = self.sweeps.get(MAIN)
        return [*plan.axes["data"], *plan.axes["recipe"]] if plan else []

    def groups(self, study: str = MAIN) -> list[Group]:
        return groups(of_study(self.rows, study), self.order)


# --- small helpers ---------------------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def millions(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.2f}"


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def listed(words: Iterable[object]) -> str:
    some = [str(word) for word in words]
    return " and ".join([", ".join(some[:-1]), some[-1]] if len(some) > 1 else some)


def by_data(some: Iterable[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in some:
        found.setdefault(group.data, []).append(group)
    return found


def hand(page: str, section: str) -> str:
    """What somebody has written under this heading of the page as it is; it survives every rebuild."""
    found = re.search(rf"^## {re.escape(section)}\n\n{BY_HAND}\n(.*?){END}", page, re.DOTALL | re.MULTILINE)
    return f"{BY_HAND}\n{found[1] if found else ''}{END}"


def join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


# --- docs/results.md -------------------------------------------------------------------------------------------------


def results(facts: Facts, before: str) -> str:
    return join(
        [
            "# Results on few images",
            "<!-- Made by `uv run python -m benchmarks.report`. Write between the marks alone. -->",
            state(facts),
            "## What this says",
            hand(before, "What this says"),
            "## Clean and robust accuracy",
            *accuracies(facts),
            "## Who is better, image by image",
            *tests(facts),
            "## What it costs",
            *costs(facts),
            "## The first learning rate",
            *first_rates(facts),
            "## Gradient cosine",
            *cosine(facts),
            "## The dial",
            *dial(facts),
            *(part for study in STUDIES for part in further(facts, study)),
            "## Not measured",
            *NOT_POSSIBLE,
            "## Reproduced",
            *reproduced(facts),
        ]
    )


def state(facts: Facts) -> str:
    """What was asked, and how much of it has run."""
    rows, plan = facts.main, facts.sweeps.get(MAIN)
    asked = Counter(cell.axes["data"] for cell in plan.cells) if plan else Counter[str]()
    done = Counter(row.data for row in rows if row.attacked())
    total, there = sum(asked.values()), sum(done.values())
    says = [
        "What the recipes of [recipes.md](recipes.md) do on few images, on the backbone that ships. Every number comes "
        "from [benchmarks/results](../benchmarks/results), and `uv run python -m benchmarks.report --check` "
        "compares this page with it. The setting and the commands are at the top of "
        "[small-table.yaml](../presets/sweeps/small-table.yaml).",
        f"**{there} of {total} cells have run, {total - there} have not"
        + (f"** ({', '.join(f'{name} {done[name]} of {n}' for name, n in asked.items())})." if asked else "**."),
    ]
    if there:
        says += [setting(rows), sizes(rows)]
    return "\n\n".join(says)


def setting(rows: Sequence[Row]) -> str:
    some = [row for row in rows if row.attacked()]
    facts: dict[str, set[str]] = {
        "Machine": {row.machine for row in some if row.machine},
        "threads": {str(row.threads) for row in some if row.threads},
        "Python": {row.python for row in some if row.python},
        "torch": {str(row.torch) for row in some},
        "seeds": {str(row.seed) for row in some},
        "epochs at most": {str(max(row.epochs for row in some))},
        "AutoAttack": {str(row.version) for row in some},
        "commits": {row.commit for row in some},
    }
    words = "; ".join(f"{name} {listed(sorted(values))}" for name, values in facts.items() if values)
    fast = (
        " `fast` is APGD-CE and APGD-T, two of standard AutoAttack's four attacks: robust accuracies are upper bounds."
    )
    return f"{words}.{fast if any(row.version == 'fast' for row in some) else ''}"


def sizes(rows: Sequence[Row]) -> str:
    lines = []
    for data in dict.fromkeys(row.data for row in rows):
        some = [row for row in rows if row.data == data]
        tested = next((row for row in some if row.attacked()), None)
        if tested is not None:
            lines.append([
                data, tested.threat, str(tested.side),
                span(row.train for row in some), span(row.val for row in some), str(tested.n),
            ])  # fmt: skip
    return table(["set", "threat", "side", "training images", "validation images", "test images, all attacked"], lines)


def span(values: Iterable[int | None]) -> str:
    """The seed of a run draws its validation images, so numbers differ a little."""
    some = sorted({value for value in values if value is not None})
    return "" if not some else str(some[0]) if len(some) == 1 else f"{some[0]} to {some[-1]}"


def accuracies(facts: Facts) -> list[str]:
    lines = [
        [
            group.data, group.recipe, str(len(group.rows)),
            percent(group.mean("clean"), group.sd("clean")),
            percent(group.mean("robust"), group.sd("robust")),
            percent(group.mean("expected")),
            listed(sorted({f"{row.rate:g}" for row in group.rows})),
        ]
        for group in facts.groups()
    ]  # fmt: skip
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Percent of the test part, mean and, with two seeds or more, standard deviation. Expected robustness is the "
        "mean over all radii from 0 to twice the threat's, under APGD-CE.",
        table(["set", "recipe", "seeds", "clean", "robust", "expected", "first rate"], lines),
        *(best_of(some) for some in by_data(facts.groups()).values() if len(some) > 1),
    ]


def best_of(some: Sequence[Group]) -> str:
    robust = max(some, key=lambda group: group.mean("robust") or 0.0)
    clean = max(some, key=lambda group: group.mean("clean") or 0.0)
    return (
        f"On {robust.data} `{robust.recipe}` withstands most ({percent(robust.mean('robust'))} %), and "
        f"`{clean.recipe}` is right most often without an attack ({percent(clean.mean('clean'))} %)."
    )


def tests(facts: Facts) -> list[str]:
    some = facts.groups()
    found = {what: compared(some, BASELINES, what) for what in ("robust", "clean")}
    if not found["robust"]:
        return ["No recipe and baseline have run on the same set yet."]
    parts = [
        "Points of difference to each baseline on the same images and seeds (McNemar, exact; an image counts once, for "
        "the recipe that was right under more seeds). p is corrected (Holm) for all "
        f"{len(found['robust'])} comparisons of its table; **bold** is surely different (p < 0.05).",
    ]
    for what, comparisons in found.items():
        parts += [f"### {what.capitalize()} accuracy", matrix(comparisons)]
    return [*parts, "### The claim", claim(found["robust"])]


def matrix(comparisons: Sequence[Comparison]) -> str:
    known = {(one.data, one.recipe, one.baseline): one for one in comparisons}
    there = [baseline for baseline in BASELINES if any(one.baseline == baseline for one in comparisons)]
    lines = [
        [data, recipe, *(entry(known.get((data, recipe, baseline))) for baseline in there)]
        for data, recipe in dict.fromkeys((one.data, one.recipe) for one in comparisons)
    ]
    return table(["set", "recipe", *(f"against {baseline}" for baseline in there)], lines)


def entry(one: Comparison | None) -> str:
    if one is None:
        return ""
    text = f"{100 * one.difference:+.1f} ({one.only_ours}:{one.only_theirs}, p {one.adjusted:.2g})"
    return f"**{text}**" if one.sure() else text


def claim(comparisons: Sequence[Comparison]) -> str:
    """AutoLoRa is said to be more robust than vanilla fine-tuning and TWINS on every task."""
    lines = []
    for recipe in CLAIM:
        for baseline in BASELINES:
            some = [one for one in comparisons if (one.recipe, one.baseline) == (recipe, baseline)]
            if some:
                more = sum(one.sure() and one.difference > 0 for one in some)
                less = sum(one.sure() and one.difference < 0 for one in some)
                lines.append([recipe, baseline, str(len(some)), str(more), str(less), str(len(some) - more - less)])
    if not lines:
        return "Neither AutoLoRa nor its baselines have run on a common set yet."
    holds = all(line[2] == line[3] for line in lines)
    verdict = (
        "It holds here: surely more robust on each set that has run."
        if holds
        else "**It does not hold here as it is said**: on how many sets it is surely more robust, less, or neither:"
    )
    if missing := [f"`{name}`" for name in SEARCHED if name not in {line[1] for line in lines}]:
        verdict += f" **The stronger baselines, {listed(missing)}, have not run**, so this is half of an answer."
    head = ["AutoLoRa", "against", "sets", "surely more robust", "surely less", "neither"]
    said = "AutoLoRa is said to be more robust than vanilla fine-tuning and TWINS on every task."
    return f"{said} {verdict}\n\n{table(head, lines)}"


def costs(facts: Facts) -> list[str]:
    """Forwards as docs/recipes.md counts them; processor seconds of the stage, which trains the natural twin too."""
    some = facts.groups()
    lines = [
        [
            group.data, group.recipe, millions(price(facts.main, group, "forwards")),
            seconds(price(facts.main, group, "processor_seconds")), str(len(tries(facts.main, group)) or ""),
            percent(group.mean("robust")),
        ]
        for group in some
    ]  # fmt: skip
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Of one network: forwards of one image (PGD's gradient counts as three, a training step as three), and "
        "processor seconds of the stage `finetune`, in which the natural twin is trained too. A searched recipe "
        "costs all its tries; the best of them is the network.",
        table(["set", "recipe", "forwards, millions", "processor seconds", "tries", "robust"], lines),
        picture(facts, "results-cost", "Robust accuracy over the cost of training"),
        *(knee(facts, data, of) for data, of in by_data(some).items()),
    ]


def knee(facts: Facts, data: str, some: Sequence[Group]) -> str:
    steps = front(some, lambda group: price(facts.main, group, "forwards"))
    if len(steps) < 2:
        return ""
    words = "; ".join(
        f"`{group.recipe}` {millions(price(facts.main, group, 'forwards'))} for {percent(group.mean('robust'))} %"
        for group in steps
    )
    return f"On {data} more forwards buy more robust accuracy along these: {words}. All others cost more for no more."


def first_rates(facts: Facts) -> list[str]:
    lines = []
    for group in facts.groups():
        some = sorted(tries(facts.main, group), key=lambda row: row.rate)
        if some:
            found = [f"{row.rate:g}: {percent(row.val_robust)}" for row in some]
            values = [row.val_robust for row in some if row.val_robust is not None]
            lines.append([group.data, group.recipe, "; ".join(found), percent(max(values) - min(values))])
    if not lines:
        return [f"No search has finished yet: `uv run python -m pipelines.sweep {MAIN}`."]
    return [
        "What the searches saw: percent of validation images that stand PGD-10, by first rate, at the first seed.",
        table(["set", "recipe", "rate: validation accuracy", "from worst to best, points"], lines),
        picture(facts, "results-rates", "Validation accuracy over the first rate"),
    ]


def cosine(facts: Facts) -> list[str]:
    lines = []
    for group in facts.groups():
        values = [value for value in series(group.rows[0].cosine_by_epoch) if value is not None]
        if len(values) > 1:
            fifth = max(1, len(values) // 5)
            lines.append([group.data, group.recipe, f"{fmean(values[:fifth]):.2f}", f"{fmean(values[-fifth:]):.2f}"])
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Between the gradients of the natural and of the adversarial cross-entropy, of all backbone parameters on one "
        "batch: the mean over the first and over the last fifth of the epochs, at the first seed.",
        table(["set", "recipe", "at first", "at last"], lines),
        picture(facts, "results-cosine", "Cosine of the two gradients by epoch"),
    ]


def dial(facts: Facts) -> list[str]:
    lines = []
    for group in facts.groups():
        points = [dict(zip(("alpha", "pair"), word.split(":"))) for word in (group.rows[0].dial or "").split()]
        if group.recipe in CLAIM and points:
            for one in points:
                clean, robust = map(float, one["pair"].split("/"))
                lines.append([group.data, group.recipe, one["alpha"], percent(clean), percent(robust)])
    if not lines:
        return [not_yet(MAIN)]
    return [
        "theta + alpha * BA toward the natural branch, on validation images under PGD-20, at the first seed.",
        table(["set", "recipe", "alpha", "clean", "robust"], lines),
    ]


def further(facts: Facts, study: Study) -> list[str]:
    some = facts.groups(study.sweep)
    if not some:
        return [f"## {study.title}", study.question, not_yet(study.sweep)]
    lines = [
        [
            group.data, group.setting, group.recipe, str(len(group.rows)),
            percent(group.mean("clean"), group.sd("clean")), percent(group.mean("robust"), group.sd("robust")),
        ]
        for group in some
    ]  # fmt: skip
    head = ["set", "setting", "recipe", "seeds", "clean", "robust"]
    return [f"## {study.title}", f"{study.question} {left(facts, study.sweep)}", table(head, lines)]


def left(facts: Facts, sweep: str) -> str:
    plan = facts.sweeps.get(sweep)
    there = sum(row.attacked() for row in of_study(facts.rows, sweep))
    return f"{there} of {len(plan.cells)} cells have run." if plan else ""


def not_yet(sweep: str) -> str:
    return f"Not run yet: `uv run python -m pipelines.sweep {sweep}`"


def picture(facts: Facts, name: str, alt: str) -> str:
    return f"![{alt}]({name}.png)" if name in panels(facts.main, facts.groups()) else ""


def reproduced(facts: Facts) -> list[str]:
    how = "`uv run python -m benchmarks.reproduce CELL` runs a cell again in a clean clone and compares image by image."
    if not facts.reproduced:
        return [f"{how} Not run yet."]
    lines = [
        [
            str(one["cell"]), str(one["commit"]), str(one["threads"]),
            percent(one["robust"][0]), percent(one["robust"][1]), str(one["clean_flags_differ"]),
            str(one["robust_flags_differ"]), "yes" if one["training_equal"] else "no",
        ]
        for one in facts.reproduced
    ]  # fmt: skip
    head = ["cell", "commit", "threads", "robust, table", "robust, again", "images that differ, clean", "robust"]
    return [how, table([*head, "every epoch's numbers equal"], lines)]


# --- docs/expectations.md --------------------------------------------------------------------------------------------


def expectations(facts: Facts, before: str) -> str:
    return join(
        [
            "# What to expect",
            "<!-- Made by `uv run python -m benchmarks.report`. Write between the marks alone. -->",
            "For people who wonder whether to start. Numbers come from the same cells as [results.md](results.md): few "
            "small images, and the small backbone that ships. What larger images and a larger backbone give, this page "
            "does not say.",
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
    lines = [
        [
            plain.data, percent(plain.mean("clean")), percent(ours.mean("clean")),
            f"{100 * ((plain.mean('clean') or 0) - (ours.mean('clean') or 0)):.1f}",
            percent(plain.mean("robust")), percent(ours.mean("robust")),
        ]
        for plain, ours in pairs(facts)
    ]  # fmt: skip
    head = ["set", "natural: clean", "default: clean", "points paid", "natural: robust", "default: robust"]
    return [table(head, lines)] if lines else [not_yet(MAIN)]


def duration(facts: Facts) -> list[str]:
    chosen = [group for group in facts.groups() if group.recipe in ("best", "nfgsm2022", "natural")]
    lines = [
        [group.data, group.recipe, str(group.rows[0].side), span(row.train for row in group.rows),
         str(max(row.epochs for row in group.rows)), seconds(group.mean("processor_seconds"))]
        for group in chosen if group.mean("processor_seconds") is not None
    ]  # fmt: skip
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Processor seconds of `finetune` on one core. Time grows with images, epochs and pixels; for your own images "
        "`uv run python -m stages.estimate` says it beforehand.",
        table(["set", "recipe", "side", "training images", "epochs", "processor seconds"], lines),
    ]


def asked(facts: Facts, sweep: str) -> list[str]:
    study = next(study for study in STUDIES if study.sweep == sweep)
    return further(facts, study)[1:]


def not_worth(facts: Facts) -> list[str]:
    lines = []
    for _, ours in pairs(facts):
        clean, robust = ours.mean("clean") or 0.0, ours.mean("robust") or 0.0
        lines.append([ours.data, percent(clean), percent(robust), percent(robust / clean if clean else None)])
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Where few of the answers that are right withstand the attack, robustness of this size is not to be had from "
        "these images and this backbone. The last column is that share, for the default.",
        table(["set", "clean", "robust", "of the right answers that stand"], lines),
    ]


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
        for name in dict.fromkeys(group.recipe for group in groups)
        if {group.data for group in groups if group.recipe == name} == set(sets)
    ]
    shown = [group for group in groups if group.recipe in names]
    known = {(group.data, group.recipe): group for group in shown}
    lines = [[name, *(both(known.get((data, name))) for data in sets)] for name in names]
    return join(
        [
            "## On few images",
            "Clean / robust accuracy in percent, on the backbone that ships ([results.md](docs/results.md)).",
            setting([row for group in shown for row in group.rows]),
            table(["recipe", *(f"{data}, n = {attacked_images(groups, data)}" for data in sets)], lines),
            "![Robust accuracy over the cost of training](docs/results-cost.png)",
            claim_in_short(facts),
        ]
    ).rstrip()


def attacked_images(groups: Sequence[Group], data: str) -> str:
    return listed(sorted({row.n for group in groups if group.data == data for row in group.rows if row.n}))


def both(group: Group | None) -> str:
    return "" if group is None else f"{percent(group.mean('clean'))} / {percent(group.mean('robust'))}"


def claim_in_short(facts: Facts) -> str:
    """Against vanilla with a searched rate, or at its published one as long as no search has run; and with our rule."""
    ran = {group.recipe for group in facts.groups()}
    rates = {"vanilla-searched": "a searched rate"} if "vanilla-searched" in ran else {"vanilla": "its published rate"}
    if "vanilla-found" in ran:
        rates["vanilla-found"] = "the same rule of the rate"
    said = (f"with {rate}: {against(facts, baseline)}" for baseline, rate in rates.items())
    missing = [f"`{name}`" for name in SEARCHED if name not in ran]
    return (
        "AutoLoRa without a search (`best`, the default) against vanilla fine-tuning (TRADES) "
        + f"{'. Against it '.join(said)}."
        + (f" The stronger baselines, {listed(missing)}, have not run yet." if missing else "")
    )


def against(facts: Facts, baseline: str) -> str:
    said = []
    for what, word in (("robust", "robust"), ("clean", "often right without an attack")):
        some = [c for c in compared(facts.groups(), BASELINES, what) if (c.recipe, c.baseline) == ("best", baseline)]
        more, less = (sum(c.sure() and sign * c.difference > 0 for c in some) for sign in (1, -1))
        said.append(f"surely more {word} on {more} of {len(some)} sets, surely less on {less}")
    return "; ".join(said)


PAGES: dict[str, Callable[[Facts, str], str]] = {"docs/results.md": results, "docs/expectations.md": expectations}
