"""How often `version: strong` is lower than `standard`, and what it costs: five robust networks, CIFAR-10 test images.

    python -m benchmarks.strong_version run [--net resnet2b] [--images 100]     # all five; hours on one core
    python -m benchmarks.strong_version table

Networks and images lie in ../shared, the fifth network in models/pretrained/. `strong` begins with standard's own steps
and draws, so one run gives both figures: standard's is the accuracy after Square. Each run is a JSON file in
.work/strong, and continues where it was killed. F is a forward of one image; a gradient counts as one more.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autolora import Threat, autoattack
from autolora.backbones.classifier import load_classifier
from autolora.common.command_line import Command
from autolora.common.files import read_json, write_json
from autolora.common.statistics import wilson
from benchmarks.agreement_with_original import SHARED
from benchmarks.zoo import cifar500, load_zoo

RUNS = Path(".work/strong")
SHIPPED = Path("models/pretrained/resnet10s-cifar10-linf8.safetensors")
SETUPS = {  # each near the radius that it was trained for
    "resnet2b": "2/255",
    "resnet4b": "2/255",
    "resnet20-robust2": "2/255",
    "resnet10t": "8/255",
    "resnet10s": "8/255",
}


def network(name: str) -> nn.Module:
    return load_classifier(SHIPPED).eval() if name == "resnet10s" else load_zoo(SHARED, name)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    x, y = cifar500(SHARED)
    x, y = x[: arguments.images].float() / 255, y[: arguments.images]
    for name in arguments.net:
        threat = Threat("linf", arguments.eps or SETUPS[name])
        path = RUNS / f"{name}.{threat.eps_text.replace('/', '_')}.{len(x)}.json"
        if path.exists():
            continue
        report = autoattack(network(name), x, y, threat, version="strong", progress=path.with_suffix(""))
        steps = [
            {"name": a.name, "broken": a.broken, "forwards": a.forwards, "seconds": round(a.processor_seconds, 1)}
            for a in report.attacks
        ]
        found = {"net": name, "threat": str(threat), "n": len(x), "clean": int(report.clean.sum()), "steps": steps}
        write_json(path, found)
        print(row(found), flush=True)


def row(found: dict[str, Any]) -> str:
    """Images that stand after standard and after strong; what the four and the two attacks cost."""
    standard, more = found["steps"][:4], found["steps"][4:]
    left = found["clean"] - sum(s["broken"] for s in standard)
    low, high = wilson(left, found["n"])
    before, added = (sum(s["forwards"] for s in steps) for steps in (standard, more))
    cells = [
        f"{found['net']}, {found['threat']}",
        str(found["n"]),
        f"{100 * left / found['n']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        *(str(s["broken"]) for s in more),
        f"{100 * (left - sum(s['broken'] for s in more)) / found['n']:.1f}",
        f"{before / 1e6:.2f} M",
        f"{added / 1e6:.2f} M ({100 * added / before:.0f} %)",
    ]
    return f"| {' | '.join(cells)} |"


def table(_: argparse.Namespace) -> None:
    head = [
        "network, threat",
        "images",
        "standard",
        "broken by apgd-malt",
        "by apgd-pm",
        "strong",
        "F of standard",
        "F on top",
    ]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for path in sorted(RUNS.glob("*.json")):
        print(row(read_json(path)))


def main() -> None:
    parser = Command(
        __doc__,
        reads="networks and images in ../shared, models/pretrained/",
        writes="one JSON file for each run in .work/strong; a table on stdout",
    )
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--net", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    runs.add_argument("--eps", help="another radius than that of SETUPS")
    runs.add_argument("--images", type=int, default=100)
    runs.set_defaults(act=run)
    commands.add_parser("table").set_defaults(act=table)
    arguments = parser.parse_args()
    arguments.act(arguments)


if __name__ == "__main__":
    main()
