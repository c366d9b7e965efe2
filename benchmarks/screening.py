"""Which axis of a fine-tuning is worth having? One at a time against the default, image by image, on select parts.

    python -m benchmarks.screening run PATH --seeds 0 [--nets shipped resnet4b] [--only pgd vanilla]
    python -m benchmarks.screening table
    python -m benchmarks.screening confirm PATH --seeds 0 --only pgd       AutoAttack `fast` on the test part
    python -m benchmarks.screening table --on test
    python -m benchmarks.screening run PATH --seeds 0 1 2 --only default 0.003 0.01 0.03 0.1 [--epochs 60]
    python -m benchmarks.screening run PATH --seeds 0 1 2 --only natural natural-0.003 natural-0.01 ...
    python -m benchmarks.screening rates                        the first rate that finds itself, beside those grids

PATH, networks and parts are those of benchmarks.rate_rules. A row of benchmarks/results/screening.csv is one
fine-tuning, with a bit for each image. What is there is not run again. The networks themselves lie in .work/screening,
to be attacked on the test part: once, for what was chosen.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_type_hints

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from scipy.stats import t as student_t

from autolora.attacks.autoattack import autoattack
from autolora.common.command_line import Command, at_least_one
from autolora.common.files import locked, write_text
from autolora.common.statistics import holm
from autolora.data.batches import to_pixels
from autolora.threat import Threat
from autolora.training.controllers import rise
from autolora.training.diverged import Diverged
from autolora.training.loop import finetune
from benchmarks._report_cells import bits, unpacked
from benchmarks.rate_rules import NETS, SETS, backbone, hits, parts
from pipelines.sweeps.comparison import paired_t

RESULTS, KEPT = Path("benchmarks/results/screening.csv"), Path(".work/screening")
EPOCHS = 40
MEASURES = ("clean", "robust")
FEWEST = 3  # sets, or seeds, to say how far they are apart
DEFAULT = "default"
CHANGES: dict[str, dict[str, Any]] = {  # each an axis of autolora.finetune; what a loss needs beside it comes with it
    DEFAULT: {"eps_schedule": "constant"},  # which the changes keep, but for `ramp`
    "pgd": {"attack": "pgd"},
    "vanilla": {"method": "vanilla"},
    "madry": {"method": "madry"},
    "arow": {"method": "arow"},
    "mart": {"method": "mart"},
    "smoothing": {"smoothing": 0.1},
    "weight_attack": {"weight_attack": 0.005},
    "average": {"average": 0.98},
    "robust_head": {"start": "robust_head"},
    "idbh": {"augmentation": "idbh"},
    "cutmix": {"augmentation": "cutmix"},
    "ramp": {"eps_schedule": "ramp"},
    "slow_start": {"reference": "slow_start", "attack": "single"},
    "lora": {"method": "madry", "trains": "lora"},
    "prominent": {"method": "vanilla", "trains": "prominent"},
}
NATURAL: dict[str, dict[str, Any]] = {"natural": {"method": "natural", "eps_schedule": "auto"}}  # it knows no eps
RATES = ("0.003", "0.01", "0.03", "0.1")
BEFORE = "0.01"  # the first rate of every fine-tuning before it found itself
SEARCHED = (DEFAULT, "vanilla", *NATURAL)  # whose first rate finds itself, and is held against the grid


def at_rate(change: str, rate: str) -> str:
    """The name of a change at a rate of the grid."""
    return rate if change == DEFAULT else f"{change}-{rate}"


ALL = CHANGES | NATURAL
ALL |= {at_rate(change, rate): ALL[change] | {"rate": float(rate)} for change in SEARCHED for rate in RATES}


@dataclass(frozen=True)
class Row:
    net: str
    data: str
    change: str
    epochs: int
    seed: int
    on: str
    n: int
    clean: float
    robust: float
    seconds: float  # of the processor, for the fine-tuning
    rate: float
    train_accuracy: float  # of the natural images in training, in the kept epoch
    val_robust: float
    collapsed: int  # times the guard went back
    clean_flags: str
    robust_flags: str

    @property
    def diverged(self) -> bool:
        return self.train_accuracy == self.val_robust == self.clean == 0

    def key(self) -> tuple[Any, ...]:
        return self.net, self.data, self.change, self.epochs, self.seed, self.on


# --- runs ------------------------------------------------------------------------------------------------------------


def tuned(path: Path, net: str, name: str, change: str, epochs: int, seed: int) -> Row:
    data, threat = parts(path, name, seed), Threat("linf", NETS[net][2])
    start = time.process_time()
    try:
        done = finetune(
            backbone(path, net, data, seed), data["train"], data["val"], threat,
            epochs=epochs, seed=seed, progress=False, **CHANGES[DEFAULT] | ALL[change],
        )  # fmt: skip
    except Diverged:
        return lost((net, name, change, epochs, seed), len(data["select"][1]), time.process_time() - start)
    seconds = time.process_time() - start
    save_model(done.model, str(kept(net, name, change, epochs, seed)))
    return Row(
        net, name, change, epochs, seed, "select", **judged(*hits(done.model, data["select"], threat)),
        seconds=round(seconds, 1), rate=done.history[0]["lr"], train_accuracy=done.best["natural_accuracy"],
        val_robust=done.best["val_robust"], collapsed=sum("collapsed" in r["event"] for r in done.history),
    )  # fmt: skip


def lost(which: tuple[str, str, str, int, int], n: int, seconds: float) -> Row:
    """Training diverged: an answer too, the worst. There is no network, and no image is right."""
    none = torch.zeros(n, dtype=torch.bool)
    return Row(
        *which, "select", **judged(none, none), seconds=round(seconds, 1), rate=ALL[which[2]].get("rate", math.nan),
        train_accuracy=0.0, val_robust=0.0, collapsed=0,
    )  # fmt: skip


def attacked(path: Path, row: Row) -> Row:
    """The network of a row on the test part, by AutoAttack `fast`."""
    data = parts(path, row.data, row.seed)
    model = backbone(path, row.net, data, row.seed).eval()
    load_model(model, kept(*row.key()[:-1]))
    x, y = to_pixels(data["test"][0]), data["test"][1]
    report = autoattack(model, x, y, Threat("linf", NETS[row.net][2]), version="fast")
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    return Row(**asdict(row) | {"on": "test"} | judged(clean, report.robust))


def judged(clean: torch.Tensor, robust: torch.Tensor) -> dict[str, Any]:
    flags = {"clean": clean.numpy(), "robust": robust.numpy()}
    shares = {what: round(100 * float(right.mean()), 2) for what, right in flags.items()}
    return {"n": len(clean)} | shares | {f"{what}_flags": bits(right) for what, right in flags.items()}


def kept(net: str, name: str, change: str, epochs: int, seed: int) -> Path:
    return KEPT / f"{net}.{name}.{change}.{epochs}.{seed}.safetensors"


def run(args: argparse.Namespace) -> None:
    """Change by change, so that what is broken off has whole columns."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for seed, change, net, name in itertools.product(args.seeds, args.only, args.nets, args.sets):
        if (net, name, change, args.epochs, seed, "select") not in {row.key() for row in read()}:
            added(tuned(args.path, net, name, change, args.epochs, seed))


def confirm(args: argparse.Namespace) -> None:
    rows = read()
    there = {row.key() for row in rows}
    for row in rows:
        asked = row.net in args.nets and row.data in args.sets and row.change in args.only and row.seed in args.seeds
        if (
            asked
            and not row.diverged
            and row.epochs == EPOCHS
            and row.on == "select"
            and (*row.key()[:-1], "test") not in there
        ):
            added(attacked(args.path, row))


# --- the table -------------------------------------------------------------------------------------------------------


def table(args: argparse.Namespace) -> None:
    """Differences in points, and p after Holm's correction for every test in the table; * is below 0.05."""
    rows = [row for row in read() if (row.on, row.epochs) == (args.on, EPOCHS)]
    tests = list(comparisons(rows))
    adjusted = iter(holm([p for *_, p in tests]))
    print("| network, set | change | seeds | clean | robust | seconds |\n|---|---|---|---|---|---|")
    over: list[str] = []
    for group, two in itertools.groupby(tests, lambda test: test[:3]):
        net, name, change = group
        said = [f"{difference:+.1f} (p {p:.2g}){'*' * (p < 0.05)}" for (*_, difference, _), p in zip(two, adjusted)]
        pairs = [pair for pair in both(rows, net, change) if pair[0].data == name]
        cost = fmean(ours.seconds for _, ours in pairs) / fmean(base.seconds for base, _ in pairs)
        print(f"| {net}, {name} | {change} | {len(pairs)} | {' | '.join(said)} | {cost:.2f} |")
        if len(pairs) >= FEWEST:
            of_seeds = [paired_t(*([getattr(row, what) for row in one] for one in zip(*pairs))) for what in MEASURES]
            told = " / ".join("-" if p is None else f"{p:.2g}" for p in of_seeds)
            over.append(f"{net}, {name}, {change}: p over seeds {told}")
    print("\n".join(["", *over]))
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


def rates(args: argparse.Namespace) -> None:
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


def paired(before: Sequence[Row], now: Sequence[Row], what: str) -> tuple[float, float]:
    """The rise in points, and its two-sided p: on the same images, each counted once for all seeds."""
    old, new = shares(before, what), shares(now, what)
    return 100 * float((new - old).mean()), math.erfc(abs(rise(old.tolist(), new.tolist())) / math.sqrt(2))


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
    for net, name, change in itertools.product(NETS, SETS, list(CHANGES)[1:]):
        base, ours = (
            {row.seed: row for row in rows if row.key()[:3] == (net, name, which)} for which in (DEFAULT, change)
        )
        if shared := sorted(base.keys() & ours.keys()):
            for what in MEASURES:
                before, now = ([some[seed] for seed in shared] for some in (base, ours))
                yield net, name, change, what, *paired(before, now, what)


def shares(rows: Sequence[Row], what: str) -> np.ndarray:
    """Of each image the share of the seeds under which it is right."""
    return np.mean([unpacked(getattr(row, f"{what}_flags"), row.n) for row in rows], axis=0)


# --- the file --------------------------------------------------------------------------------------------------------


def read() -> list[Row]:
    if not RESULTS.is_file():
        return []
    kinds = get_type_hints(Row)
    with open(RESULTS, newline="", encoding="utf-8") as text:
        return [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in csv.DictReader(text)]


def added(row: Row) -> None:
    """Two processes may be at it, on two sets."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    with locked(KEPT / "lock", wait=True):
        writer.writerows(asdict(one) for one in sorted([*read(), row], key=Row.key))
        write_text(RESULTS, text.getvalue())
    print(*row.key(), f"clean {row.clean} robust {row.robust} (n = {row.n}), {row.seconds} s", flush=True)


def main() -> None:
    parser = Command(
        __doc__, reads=f"PATH/data and PATH/weights; {RESULTS}", writes=f"{RESULTS}, {KEPT}; a table on stdout"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "confirm"):
        command = commands.add_parser(name)
        command.add_argument("path", type=Path)
        command.add_argument("--nets", nargs="+", choices=NETS, default=["shipped", "resnet4b"])
        command.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
        command.add_argument("--only", nargs="+", choices=ALL, default=list(CHANGES), metavar="CHANGE")
        command.add_argument("--seeds", nargs="+", type=int, default=[0])
    commands.choices["run"].add_argument("--epochs", type=at_least_one, default=EPOCHS, metavar="N")
    commands.add_parser("rates")
    commands.add_parser("table").add_argument("--on", choices=("select", "test"), default="select")
    args = parser.parse_args()
    {"run": run, "confirm": confirm, "table": table, "rates": rates}[args.command](args)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
