"""Ours against the original AutoAttack: same network, images and device; accuracy after each attack, image by image.

    python -m benchmarks.agreement_with_original run --reference PATH --net resnet2b --eps 2/255 --seeds 0 1 2
    python -m benchmarks.agreement_with_original run --net resnet2b --eps 2/255 --seeds 0          # ours alone
    python -m benchmarks.agreement_with_original run --net resnet2b --batch 32 [--threads 2]   # another batch shape
    python -m benchmarks.agreement_with_original table

PATH is a checkout of github.com/fra31/auto-attack, which stays outside this repository. Networks and images lie in
../shared. Every run is one JSON file in .work/agreement, so that runs can be added; `table` prints what is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autolora import Threat, autoattack
from autolora.common.command_line import Command
from autolora.common.files import read_json, write_json
from benchmarks.zoo import cifar500, load_zoo

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
RUNS = Path(".work/agreement")
ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


class Counted(nn.Module):
    """Counts image forwards F; a pass through which a gradient flows back counts as two."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x) * (2 if x.requires_grad else 1)
        return self.model(x)


def ours(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, seed: int, batch: int | None) -> dict[str, Any]:
    report = autoattack(model, x, y, threat, seed=seed, batch_size=batch)
    return {
        "clean": report.clean_accuracy,
        "after": {a.name: a.robust_accuracy for a in report.attacks},
        "seconds": {a.name: a.processor_seconds for a in report.attacks},
        "flags": report.robust.int().tolist(),
    }


def original(
    path: Path,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    seed: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """What its log says after each attack; its flags from its adversarial images."""
    sys.path.insert(0, str(path))
    from autoattack import AutoAttack

    lines: list[tuple[str, float]] = []
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    attack = AutoAttack(model, norm=norm, eps=threat.eps, seed=seed, version="standard", device=x.device.type)
    attack.logger.log = lambda line: lines.append((line, clock()))
    begin = clock()
    adversarial = attack.run_standard_evaluation(x, y, bs=250)
    said = [(line.split(), at - begin) for line, at in lines if line.startswith("robust accuracy after")]
    after = {words[3].rstrip(":").lower(): float(words[4].rstrip("%")) / 100 for words, _ in said}
    ends = {name: at for name, (_, at) in zip(after, said)}
    starts = dict(zip(ends, [0.0, *ends.values()]))
    with torch.no_grad():
        flags = (model(adversarial).argmax(1) == y).int().tolist()
        clean = (model(x).argmax(1) == y).double().mean().item()
    seconds = {name: end - starts[name] for name, end in ends.items()}
    return {"clean": clean, "after": after, "seconds": seconds, "flags": flags}


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    x, y = cifar500(SHARED)
    x, y = x[: arguments.images].float() / 255, y[: arguments.images]
    threat = Threat(arguments.norm, arguments.eps)
    shape = f"-b{arguments.batch}" * (arguments.batch is not None) + f"-t{arguments.threads}" * (arguments.threads > 1)
    side = "original" if arguments.reference else f"ours{shape}"
    for seed in arguments.seeds:
        name = f"{arguments.net}.{threat.norm}.{arguments.eps.replace('/', '_')}.{len(x)}"
        path = RUNS / f"{name}.{side}.{seed}.json"
        if path.exists():
            continue
        model = Counted(load_zoo(SHARED, arguments.net)).eval()
        begin, cpu = time.perf_counter(), time.process_time()
        if arguments.reference:
            found = original(arguments.reference, model, x, y, threat, seed)
        else:
            found = ours(model, x, y, threat, seed, arguments.batch)
        found |= {"wall": time.perf_counter() - begin, "cpu": time.process_time() - cpu, "forwards": model.forwards}
        write_json(path, found)
        print(
            path.name,
            {k: round(100 * v, 2) for k, v in found["after"].items()},
            f"{found['cpu']:.0f} s CPU",
            flush=True,
        )


def table(_: argparse.Namespace) -> None:
    """One row per network, threat and side; ours is compared with the original, ours in another shape with ours."""
    names = [path.name.rsplit(".", 3)[:2] for path in RUNS.glob("*.json")]
    setups = sorted({setup for setup, _ in names})
    shapes = sorted({side for _, side in names} - {"ours", "original"})
    print(
        "| network, threat, images | by | seeds | clean | "
        + " | ".join(ATTACKS)
        + " | images that differ | s (CPU) | F |"
    )
    print("|---|---|---|---|" + "---|" * (len(ATTACKS) + 3))
    for setup in setups:
        sides = {side: _load(setup, side) for side in ("ours", "original", *shapes)}
        against = {"ours": sides["original"], "original": sides["original"][1:]}
        for side, found in sides.items():
            if found:
                print(_row(setup, side, found, against.get(side, sides["ours"])))


def _load(setup: str, side: str) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(RUNS.glob(f"{setup}.{side}.*.json"))]


def _row(setup: str, side: str, found: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    cells = []
    for name in ATTACKS:
        values = [100 * f["after"].get(name, min(f["after"].values())) for f in found]
        spread = f" [{min(values):.1f}, {max(values):.1f}]" if len(values) > 1 else ""
        cells.append(f"{np.mean(values):.2f}{spread}")
    differ = [int((np.array(found[0]["flags"]) != np.array(other["flags"])).sum()) for other in others]
    cpu, forwards = np.mean([f["cpu"] for f in found]), np.mean([f["forwards"] for f in found])
    name, norm, eps, n = setup.split(".", 3) if setup.count(".") == 3 else _parts(setup)
    return (
        f"| {name}, {norm} {eps.replace('_', '/')}, {n} | {side} | {len(found)} | {100 * found[0]['clean']:.1f} | "
        + " | ".join(cells)
        + f" | {', '.join(map(str, differ)) or '-'} | {cpu:.0f} | {forwards / 1e6:.2f} M |"
    )


def _parts(setup: str) -> tuple[str, str, str, str]:
    """net.norm.eps.n, where eps itself may hold a dot."""
    name, norm, rest = setup.split(".", 2)
    eps, n = rest.rsplit(".", 1)
    return name, norm, eps, n


def main() -> None:
    parser = Command(
        __doc__,
        reads="networks and images in ../shared, the original in PATH",
        writes="one JSON file for each run in .work/agreement; a table on stdout",
    )
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--reference", type=Path, help="checkout of the original; without it, ours is run")
    runs.add_argument("--net", default="resnet2b")
    runs.add_argument("--norm", default="linf")
    runs.add_argument("--eps", default="2/255")
    runs.add_argument("--images", type=int, default=500)
    runs.add_argument("--seeds", type=int, nargs="+", default=[0])
    runs.add_argument("--batch", type=int, help="of ours; default: what autoattack takes")
    runs.add_argument("--threads", type=int, default=1)
    runs.set_defaults(act=run)
    commands.add_parser("table").set_defaults(act=table)
    arguments = parser.parse_args()
    arguments.act(arguments)


if __name__ == "__main__":
    main()
