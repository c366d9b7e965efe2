"""The pictures of docs/results.md. Each carries a hash of the numbers that it shows, for --check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from PIL import Image

from autolora.common.statistics import wilson
from benchmarks._report_cells import Row, series
from benchmarks._report_numbers import Group, at_shared_seeds, natural, of_study, price, tries
from benchmarks._report_words import MAIN, Facts, by_data

AROUND = 4  # epochs before and after one, over which a mean is taken
SHOWN = "numbers"  # the name of the note in the file
Panels = dict[str, dict[str, list[tuple[float, ...]]]]  # by set and by recipe: points, of some with their interval in y


def cost(rows: Sequence[Row], some: Sequence[Group]) -> Panels:
    """Robust accuracy over forwards, in millions, with the 95 % interval of a share of so many images.

    All recipes of a set with the same seeds.
    """
    found: Panels = {}
    for group in (one for of in by_data(some).values() for one in at_shared_seeds(of)):
        forwards, robust = price(rows, group, "forwards"), group.mean("robust")
        if forwards is not None and robust is not None:
            n = group.rows[0].n or 0
            interval = (100 * bound for bound in wilson(robust * n, n))
            found.setdefault(group.data, {})[group.recipe] = [(forwards / 1e6, 100 * robust, *interval)]
    return found


def rates(rows: Sequence[Row], some: Sequence[Group]) -> Panels:
    """Validation accuracy under PGD-10 over the first rate: the tries of searches."""
    found: Panels = {}
    for group in some:
        points: list[tuple[float, ...]] = [
            (row.rate, 100 * row.val_robust) for row in tries(rows, group) if row.val_robust is not None
        ]
        if len(points) > 1:
            found.setdefault(group.data, {})[group.recipe] = sorted(points)
    return found


def cosines(rows: Sequence[Row], some: Sequence[Group]) -> Panels:
    """Between the gradients of the natural and of the adversarial loss, at the first seed; of one batch each, so that
    only means of several epochs show which way it goes."""
    found: Panels = {}
    for group in some:
        values = series(group.rows[0].cosine_by_epoch)
        if len([value for value in values if value is not None]) > 1:
            found.setdefault(group.data, {})[group.recipe] = means(values)
    return found


def means(values: Sequence[float | None]) -> list[tuple[float, ...]]:
    """By epoch, over those around it."""
    around = {at + 1: values[max(0, at - AROUND) : at + AROUND + 1] for at in range(len(values))}
    known = {epoch: [value for value in some if value is not None] for epoch, some in around.items()}
    return [(float(epoch), fmean(some)) for epoch, some in known.items() if some]


def along(rows: Sequence[Row], some: Sequence[Group]) -> Panels:
    """Clean and robust accuracy over the number that is a study's further axis, with the 95 % interval of a share."""
    found: Panels = {}
    for group in some:
        for what, title in (("clean", "clean"), ("robust", "under attack")):
            share, n = group.mean(what) or 0.0, group.rows[0].n or 0
            point = (natural(group.setting)[0], 100 * share, *(100 * bound for bound in wilson(share * n, n)))
            found.setdefault(f"{group.data}, {title}", {}).setdefault(group.recipe, []).append(point)
    longer = any(len(points) > 1 for recipes in found.values() for points in recipes.values())
    return found if longer else {}


class Picture(NamedTuple):
    study: str
    points: Callable[[Sequence[Row], Sequence[Group]], Panels]
    below: str
    beside: str


SHARE = "%, and 95 % interval"
PICTURES = {
    "results-cost": Picture(
        MAIN, cost, "forwards of training, millions (searches included)", "robust, %, and 95 % interval"
    ),
    "results-rates": Picture(MAIN, rates, "first learning rate", "validation, PGD-10, %"),
    "results-cosine": Picture(MAIN, cosines, "epoch", "cosine, mean of nine epochs"),
    "results-first-rates": Picture("small-rates", along, "first learning rate", SHARE),
    "results-ranks": Picture("small-ranks", along, "rank", SHARE),
    "results-amounts": Picture("small-amounts", along, "training images", SHARE),
}


def panels(facts: Facts) -> dict[str, Panels]:
    """What each picture shows; a picture without points is not drawn."""
    found = {
        name: one.points(of_study(facts.rows, one.study), facts.groups(one.study)) for name, one in PICTURES.items()
    }
    return {name: shown for name, shown in found.items() if shown}


def recipes_of(pictures: Iterable[Panels]) -> list[str]:
    """All that any picture shows: each has its colour, the same in all of them."""
    return sorted({recipe for shown in pictures for some in shown.values() for recipe in some})


def digest(shown: Panels, recipes: Sequence[str]) -> str:
    rounded = {
        d: {r: [[float(f"{v:.5g}") for v in p] for p in ps] for r, ps in some.items()} for d, some in shown.items()
    }
    return hashlib.sha256(json.dumps([rounded, recipes]).encode()).hexdigest()[:16]


def noted(file: Path) -> str | None:
    """The hash that a picture carries."""
    with Image.open(file) as image:
        return str(image.info.get(SHOWN))


def draw(name: str, shown: Panels, recipes: Sequence[str], file: Path) -> None:
    """One panel a set, one colour a recipe."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    _, _, below, beside = PICTURES[name]
    figure = Figure(figsize=(3.1 * len(shown) + 2.2, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (data, some) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for recipe, points in some.items():
            line(axes, recipe, points, f"C{recipes.index(recipe) % 10}", recipes.index(recipe) >= 10)
        if name != "results-cosine":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if PICTURES[name].points in (cost, along):
            axes.set_ylim(bottom=0)
        axes.set_title(data, fontsize=10, loc="left")
        axes.set_xlabel(below, fontsize=8)
        axes.set_ylabel(beside, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=100, metadata={SHOWN: digest(shown, recipes), "Software": None})


def line(axes: Any, recipe: str, points: list[tuple[float, ...]], colour: str, hollow: bool) -> None:
    x, y, *interval = zip(*points)
    if interval:
        axes.vlines(x, *interval, color=colour, linewidth=1, alpha=0.6)
    style: dict[str, Any] = {"marker": "o", "markersize": 6} if len(x) < 10 else {"linestyle": "--" if hollow else "-"}
    axes.plot(x, y, color=colour, label=recipe, markerfacecolor="white" if hollow else colour, **style)
