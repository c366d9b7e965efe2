"""What the pages made from benchmarks/results have in common: the facts, how a number is written, and what was asked.

Every sentence that is made is true of whatever numbers there are. What a person concludes stands between two marks, and
is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks._report_cells import Row
from benchmarks._report_numbers import Group, groups, of_study
from pipelines.sweeps.grid import Sweep

MAIN, STANDARD = "small-table", "small-standard"
BASELINES = ("vanilla", "vanilla-found", "vanilla-searched", "twins-searched")
AGAINST = ("linear", *BASELINES)  # a head alone is the cheapest that there is
SEARCHED = ("vanilla-searched", "twins-searched")
IN_WORDS = {
    "natural": "fine-tuning without an attack",
    "linear": "the head alone, without an attack",
    "vanilla": "TRADES at the rate of the paper's baseline, ten gradients an image",
    "vanilla-searched": "TRADES at the best of four rates, ten gradients an image",
    "twins-searched": "TWINS at the best of four rates",
    "autolora2024-paper": "AutoLoRa as published",
    "autolora2024-released": "AutoLoRa as its released code has it",
    "vanilla-found": "TRADES with all that the default has but its branch and loss",
    "best": "the default: AutoLoRa, its rate found, one gradient an image",
    "best-pgd": "the default with ten gradients an image",
    "roli2024": "the head first, alone and under attack",
    "mart2020": "MART, which weighs images by how wrongly they are read",
}
BFLOAT16, QUICK = "bfloat16", " (bf16)"  # in a machine's name, and beside its seconds
BY_HAND, END = "<!-- written by hand -->", "<!-- end of what is written by hand -->"


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


def seeds_in_words(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {listed(str(seed) for seed in seeds)}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def percent(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def millions(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.2f}"


def seconds(found: Mapping[str, float]) -> str:
    """By machine."""
    return ", ".join(f"{value:.0f}{QUICK if BFLOAT16 in machine else ''}" for machine, value in found.items())


def told_of_machines(lines: Sequence[Sequence[str]]) -> str:
    said = f"Seconds with{QUICK} are of a processor with AVX-512 and bfloat16, the others of one without."
    return said if any(QUICK in cell for line in lines for cell in line) else ""


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


def left_out(some: Sequence[Group], chosen: Sequence[Group]) -> str:
    """Which of them have not all seeds."""
    names = {group.recipe for group in chosen}
    out = [f"`{group.recipe}`" for group in some if group.recipe not in names]
    return f" (without {listed(out)}, which {'has' if len(out) == 1 else 'have'} fewer)" if out else ""


def recipes_in_words(names: Iterable[str]) -> str:
    said = "; ".join(f"`{name}`: {IN_WORDS[name]}" for name in dict.fromkeys(names) if name in IN_WORDS)
    return f"{said}." if said else ""


def setting(rows: Sequence[Row]) -> str:
    some = [row for row in rows if row.attacked()]
    seeds = {str(row.seed) for row in some}
    facts: dict[str, set[str]] = {
        "Machine": {row.machine for row in some if row.machine},
        "threads": {str(row.threads) for row in some if row.threads},
        "Python": {row.python for row in some if row.python},
        "torch": {str(row.torch) for row in some},
        "seed" if len(seeds) == 1 else "seeds": seeds,
        "epochs at most": {str(max(row.epochs for row in some))},
        "AutoAttack": {str(row.version) for row in some},
        "commits": {row.commit for row in some},
    }
    words = "; ".join(f"{name} {listed(sorted(values))}" for name, values in facts.items() if values)
    fast = (
        " `fast` is APGD-CE and APGD-T, two of standard AutoAttack's four attacks: robust accuracies are upper bounds."
    )
    return f"{words}.{fast if any(row.version == 'fast' for row in some) else ''}"


def span(values: Iterable[int | None]) -> str:
    """The seed of a run draws its validation images, so numbers differ a little."""
    some = sorted({value for value in values if value is not None})
    return "" if not some else str(some[0]) if len(some) == 1 else f"{some[0]} to {some[-1]}"


def not_yet(sweep: str) -> str:
    return f"Not run yet: `uv run python -m pipelines.sweep {sweep}`"
