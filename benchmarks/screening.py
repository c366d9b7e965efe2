"""Which axis of a fine-tuning is worth having? One at a time against the default, image by image, on select parts.

    python -m benchmarks.screening run PATH --seeds 0 [--nets shipped resnet4b] [--only pgd vanilla]
    python -m benchmarks.screening table
    python -m benchmarks.screening confirm PATH --seeds 0 --only pgd       AutoAttack `fast` on the test part
    python -m benchmarks.screening table --on test
    python -m benchmarks.screening table --epochs 60
    python -m benchmarks.screening run PATH --seeds 0 1 2 --only default 0.003 0.01 0.03 0.1 [--epochs 60]
    python -m benchmarks.screening run PATH --seeds 0 1 2 --only natural natural-0.003 natural-0.01 ...
    python -m benchmarks.screening rates                        the first rate that finds itself, beside those grids

PATH, networks and parts are those of benchmarks.rate_rules. A row of benchmarks/results/screening.csv is one
fine-tuning, with a bit for each image. What is there is not run again. The networks themselves lie in .work/screening,
to be attacked on the test part: once, for what was chosen.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model

from autolora.attacks.autoattack import autoattack
from autolora.common.command_line import Command, at_least_one
from autolora.data.batches import to_pixels
from autolora.threat import Threat
from autolora.training.diverged import Diverged
from autolora.training.loop import finetune
from benchmarks._report_cells import bits
from benchmarks._screening_rates import rates
from benchmarks._screening_rows import ALL, CHANGES, DEFAULT, EPOCHS, KEPT, RESULTS, Row, added, read
from benchmarks._screening_tables import table
from benchmarks.rate_rules import CUTS, NETS, SETS, backbone, hits, parts
from stages.common.runner import this_machine


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
        machine=this_machine(),
    )  # fmt: skip


def lost(which: tuple[str, str, str, int, int], n: int, seconds: float) -> Row:
    """Training diverged: an answer too, the worst. There is no network, and no image is right."""
    none = torch.zeros(n, dtype=torch.bool)
    return Row(
        *which, "select", **judged(none, none), seconds=round(seconds, 1), rate=ALL[which[2]].get("rate", math.nan),
        train_accuracy=0.0, val_robust=0.0, collapsed=0, machine=this_machine(),
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
            and row.epochs == args.epochs
            and row.on == "select"
            and (*row.key()[:-1], "test") not in there
        ):
            added(attacked(args.path, row))


def main() -> None:
    parser = Command(
        __doc__, reads=f"PATH/data and PATH/weights; {RESULTS}", writes=f"{RESULTS}, {KEPT}; a table on stdout"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "confirm"):
        command = commands.add_parser(name)
        command.add_argument("path", type=Path)
        command.add_argument("--nets", nargs="+", choices=NETS, default=["shipped", "resnet4b"])
        command.add_argument("--sets", nargs="+", choices=CUTS, default=list(SETS))
        command.add_argument("--only", nargs="+", choices=ALL, default=list(CHANGES), metavar="CHANGE")
        command.add_argument("--seeds", nargs="+", type=int, default=[0])
    commands.add_parser("rates")
    commands.add_parser("table").add_argument("--on", choices=("select", "test"), default="select")
    for name in ("run", "confirm", "table"):
        commands.choices[name].add_argument("--epochs", type=at_least_one, default=EPOCHS, metavar="N")
    args = parser.parse_args()
    {"run": run, "confirm": confirm, "table": table, "rates": lambda _: rates()}[args.command](args)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
