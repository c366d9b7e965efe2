"""docs/results.md, from the rows of benchmarks/results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from benchmarks._report_cells import Row, series
from benchmarks._report_numbers import (
    SEEDS,
    Comparison,
    Group,
    at_shared_seeds,
    beside,
    compared,
    corrected,
    diverged,
    front,
    price,
    seconds_by_machine,
    tries,
)
from benchmarks._report_pictures import panels
from benchmarks._report_studies import STUDIES, further
from benchmarks._report_words import (
    AGAINST,
    BASELINES,
    MAIN,
    SEARCHED,
    Facts,
    by_data,
    hand,
    join,
    left_out,
    listed,
    millions,
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

CLAIM = ("autolora2024-paper", "autolora2024-released", "best")  # AutoLoRa, three ways
NOT_POSSIBLE = (
    "**Another kind of machine.** All rows are of x86-64 processors, some with bfloat16 and some without, which round "
    "otherwise (see above). GPUs and other architectures are not measured.",
)


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


def accuracies(facts: Facts) -> list[str]:
    lines = [
        [
            group.data, group.recipe, str(len(group.rows)),
            percent(group.mean("clean"), group.sd("clean")),
            percent(group.mean("robust"), group.sd("robust")),
            percent(group.mean("expected"), group.sd("expected")),
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
        recipes_in_words(group.recipe for group in facts.groups()),
        "A recipe `auto` would be `best` to the bit on this backbone, and does not run twice.",
        "In the next lines p < 0.05 is sure, corrected (Holm) within each half of a sentence alone.",
        *(best_of(some) for some in by_data(facts.groups()).values() if len(some) > 1),
    ]


def best_of(there: Sequence[Group]) -> str:
    some, said = at_shared_seeds(there), []
    for what, verb in (("robust", "withstands most"), ("clean", "is right most often without an attack")):
        leader = max(some, key=lambda group: group.mean(what) or 0.0)
        level = listed(f"`{group.recipe}`" for group in beside(leader, some, what))
        but = f"though not surely more than {level}" if level else "surely more than each of the others"
        said.append(f"`{leader.recipe}` {verb} ({percent(leader.mean(what))} %, {but})")
    return f"On {some[0].data}, {seeds_in_words(some[0].seeds())}{left_out(there, some)}, {listed(said)}."


def tests(facts: Facts) -> list[str]:
    some = facts.groups()
    found = {what: compared(some, AGAINST, what) for what in ("robust", "clean")}
    if not found["robust"]:
        return ["No recipe and baseline have run on the same set yet."]
    number = len({(one.data, frozenset((one.recipe, one.baseline))) for one in found["robust"]})
    parts = [
        "Points of difference to each baseline on the same images and seeds (McNemar, exact; an image counts once, for "
        f"the recipe that was right under more seeds). p is corrected (Holm) for all {number} pairs of its table. "
        f"**Bold** is surely different, p < 0.05: on these images, for these trainings. {on_seeds(found['robust'])}",
    ]
    for what, comparisons in found.items():
        parts += [f"### {what.capitalize()} accuracy", matrix(comparisons)]
    asked = [one for one in found["robust"] if one.recipe in CLAIM and one.baseline in BASELINES]
    return [*parts, "### The claim", claim(corrected(asked))]


def on_seeds(comparisons: Sequence[Comparison]) -> str:
    if all(one.p_seeds is None for one in comparisons):
        return f"No pair has {SEEDS} seeds, so nothing is said of other seeds."
    return (
        f"The last number is p of a paired t-test over the seeds, where there are {SEEDS} or more: other seeds. "
        "It is not corrected, and a searched rate is that of the first seed in all of them."
    )


def matrix(comparisons: Sequence[Comparison]) -> str:
    known = {(one.data, one.recipe, one.baseline): one for one in comparisons}
    there = [baseline for baseline in AGAINST if any(one.baseline == baseline for one in comparisons)]
    lines = [
        [data, recipe, *(entry(known.get((data, recipe, baseline))) for baseline in there)]
        for data, recipe in dict.fromkeys((one.data, one.recipe) for one in comparisons)
    ]
    return table(["set", "recipe", *(f"against {baseline}" for baseline in there)], lines)


def entry(one: Comparison | None) -> str:
    if one is None:
        return ""
    seeds = "" if one.p_seeds is None else f", seeds p {one.p_seeds:.2g}"
    text = f"{100 * one.difference:+.1f} ({one.only_ours}:{one.only_theirs}, p {one.adjusted:.2g}{seeds})"
    return f"**{text}**" if one.sure() else text


def claim(comparisons: Sequence[Comparison]) -> str:
    """AutoLoRa is said to be more robust than vanilla fine-tuning and TWINS on every task."""
    lines = []
    for recipe in CLAIM:
        for baseline in BASELINES:
            some = [one for one in comparisons if (one.recipe, one.baseline) == (recipe, baseline)]
            if some:
                more, less = sum(one.more() for one in some), sum(one.less() for one in some)
                lines.append([recipe, baseline, str(len(some)), str(more), str(less), str(len(some) - more - less)])
    if not lines:
        return "Neither AutoLoRa nor its baselines have run on a common set yet."
    asked, more, less = (sum(int(line[at]) for line in lines) for at in (2, 3, 4))
    verdict = (
        "Here it is so in every comparison."
        if more == asked
        else f"Here it is surely so in {more} of {asked} comparisons, surely the other way round in {less}, and in "
        f"{asked - more - less} **no difference is sure**: which is no proof that there is none."
    )
    ran = {name: {one.data for one in comparisons if one.baseline == name} for name in SEARCHED}
    sets = {one.data for one in comparisons}
    if missing := [f"`{name}` ({len(ran[name])} of {len(sets)})" for name in SEARCHED if ran[name] < sets]:
        verdict += f" **Stronger baselines have not run on all sets, {listed(missing)}**: this is part of an answer."
    head = ["AutoLoRa", "against", "sets", "surely more robust", "surely less", "neither"]
    said = (
        "AutoLoRa is said to be more robust than vanilla fine-tuning and TWINS on every task. Robust accuracy, p "
        f"corrected (Holm) for the {asked} comparisons of this table alone."
    )
    return f"{said} {verdict}\n\n{table(head, lines)}"


def costs(facts: Facts) -> list[str]:
    """Forwards as docs/recipes.md counts them; processor seconds of the stage, which trains the natural twin too."""
    some = facts.groups()
    lines = [
        [
            group.data, group.recipe, millions(price(facts.main, group, "forwards")),
            seconds(seconds_by_machine(facts.main, group, "processor_seconds")), tried(facts.main, group),
            seconds(seconds_by_machine(facts.main, group, "attack_seconds")), percent(group.mean("robust")),
        ]
        for group in some
    ]  # fmt: skip
    if not lines:
        return [not_yet(MAIN)]
    return [
        "Of one network: forwards of one image in its own training (a gradient for the attack counts as three, a "
        "training step as three), and processor seconds of two stages. In `finetune` the natural twin is trained too, "
        "which takes about what the row `natural` says; in `evaluate` the twin is attacked too. A searched recipe "
        "costs all its tries, but for those that diverged, which are not counted; the best of them is the network. "
        "Seconds are left out of what came from DVC's cache or went on after a break. In the picture all recipes of a "
        "set have the same seeds, and those that lack one are left out.",
        told_of_machines(lines),
        table(["set", "recipe", "forwards, millions", "`finetune`, s", "tries", "`evaluate`, s", "robust"], lines),
        picture(facts, "results-cost", "Robust accuracy over the cost of training"),
        *(knee(facts, data, of) for data, of in by_data(some).items()),
    ]


def tried(rows: Sequence[Row], group: Group) -> str:
    lost = len(diverged(rows, group))
    return str(len(tries(rows, group)) or "") + (f", {lost} diverged" if lost else "")


def knee(facts: Facts, data: str, there: Sequence[Group]) -> str:
    some = at_shared_seeds(there)
    steps = front(some, lambda group: price(facts.main, group, "forwards"))
    if not steps:
        return ""
    words = "; ".join(
        f"`{group.recipe}` {millions(price(facts.main, group, 'forwards'))} for {percent(group.mean('robust'))} %"
        + ("" if p is None else f" (p {p:.2g})")
        for group, p in steps
    )
    where = f"On {data}, {seeds_in_words(some[0].seeds())}{left_out(there, some)}"
    return (
        f"{where}, robust accuracy rises with the forwards along these: {words}. Each step from the one before has "
        "p < 0.05 before any correction, which is less than sure; what costs more than the last of them has not."
    )


def first_rates(facts: Facts) -> list[str]:
    lines = []
    for group in facts.groups():
        some = sorted(tries(facts.main, group), key=lambda row: row.rate)
        if some:
            found = [f"{row.rate:g}: {percent(row.val_robust) if row.epochs else 'diverged'}" for row in some]
            values = [row.val_robust for row in some if row.val_robust is not None]
            lines.append([group.data, group.recipe, "; ".join(found), percent(max(values) - min(values)), edge(some)])
    if not lines:
        return [f"No search has finished yet: `uv run python -m pipelines.sweep {MAIN}`."]
    return [
        "What the searches saw: percent of validation images that stand PGD-10, by first rate, at the first seed.",
        table(["set", "recipe", "rate: validation accuracy", "from worst to best, points", "best"], lines),
        picture(facts, "results-rates", "Validation accuracy over the first rate"),
    ]


def edge(some: Sequence[Row]) -> str:
    """A search that ends at the end of its grid may not have found the best."""
    best = max(some, key=lambda row: (row.val_robust or 0.0, -row.rate))
    return f"{best.rate:g}" + (
        ", the highest tried" if best is some[-1] else ", the lowest tried" if best is some[0] else ""
    )


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
        "batch: the mean over the first and over the last fifth of the epochs, at the first seed; in the picture over "
        "nine epochs.",
        table(["set", "recipe", "at first", "at last"], lines),
        picture(facts, "results-cosine", "Cosine of the two gradients by epoch"),
    ]


def dial(facts: Facts) -> list[str]:
    lines = []
    counts = [row.val for row in facts.main if row.val]
    for group in facts.groups():
        points = [dict(zip(("alpha", "pair"), word.split(":"))) for word in (group.rows[0].dial or "").split()]
        if group.recipe in CLAIM and points:
            for one in points:
                clean, robust = map(float, one["pair"].split("/"))
                lines.append([group.data, group.recipe, one["alpha"], percent(clean), percent(robust)])
    if not lines or not counts:
        return [not_yet(MAIN)]
    least, most = 100 / max(counts), 100 / min(counts)
    return [
        "theta + alpha * BA toward the natural branch, on validation images under PGD-20, at the first seed. One image "
        f"is {least:.1f} to {most:.1f} points.",
        table(["set", "recipe", "alpha", "clean", "robust"], lines),
    ]


def picture(facts: Facts, name: str, alt: str) -> str:
    return f"![{alt}]({name}.png)" if name in panels(facts) else ""


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
    return [how, table([*head, "validation in each epoch that looked: equal"], lines)]
