"""Seconds per attack, ours and the original's, on one network, the same images and one device.

    python -m benchmarks.autoattack --net resnet2b --images 100 --batch 128 [--norm l2 --eps 0.25] [--reference PATH]

PATH is a checkout of github.com/fra31/auto-attack, which stays outside this repository. Each side runs in a process
of its own, so that peak memory can be compared; both use one thread. Seconds are CPU time, for the machine may be
shared. F, the time of one forward of one image, is measured in the same process, before and after.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora import Threat, autoattack
from autolora.attacks.prepare import quick_copy
from benchmarks.agreement import ATTACKS, SHARED, original
from tests.zoo import cifar500, load_zoo


def forward_seconds(model: nn.Module, x: Tensor, passes: int = 7) -> tuple[float, float]:
    """Median time of a forward and of an input gradient, per image."""
    plain, gradient = [], []
    for _ in range(passes):
        begin = time.process_time()
        with torch.no_grad():
            model(x)
        middle = time.process_time()
        point = x.clone().requires_grad_(True)
        torch.autograd.grad(model(point).sum(), point)
        plain.append((middle - begin) / len(x))
        gradient.append((time.process_time() - middle) / len(x))
    return sorted(plain)[passes // 2], sorted(gradient)[passes // 2]


def clocked(wall: dict[str, float], cpu: float) -> dict[str, float]:
    """CPU seconds of each attack: the whole, in proportion to the wall clock."""
    total = sum(wall.values())
    return {name: cpu * value / total for name, value in wall.items()}


def one_side(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    x, y = cifar500(SHARED)
    x, y = x[: arguments.images].float() / 255, y[: arguments.images]
    model = load_zoo(SHARED, arguments.net).requires_grad_(False)
    threat = Threat(arguments.norm, arguments.eps)
    probe = x[torch.arange(arguments.batch) % len(x)]
    before = forward_seconds(model, probe)
    cpu = time.process_time()
    if arguments.side == "original":
        found = original(arguments.reference, model, x, y, threat, 0)
    else:
        target = quick_copy(model, x[:2]) if arguments.folded else model
        report = autoattack(target, x, y, threat, batch_size=arguments.batch)
        found = {
            "after": {a.name: a.robust_accuracy for a in report.attacks},
            "seconds": {a.name: a.seconds for a in report.attacks},
            "forwards": {a.name: a.forwards for a in report.attacks},
            "flags": report.robust.int().tolist(),
        }
    cpu = time.process_time() - cpu
    after = forward_seconds(model, probe)
    found["seconds"] = clocked(found["seconds"], cpu)
    found["F"], found["gradient"] = ((a + b) / 2 for a, b in zip(before, after))
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def side(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "side.json"
        command = [sys.executable, "-m", "benchmarks.autoattack", *sys.argv[1:], "--side", name, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


def show(arguments: argparse.Namespace, ours: dict[str, Any], theirs: dict[str, Any] | None) -> None:
    standing = sum(ours["flags"])
    print(
        f"{arguments.net}, {arguments.norm} {arguments.eps}, {arguments.images} images, {standing} stand; one thread,"
    )
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, batch {arguments.batch}")
    print(f"F {1e6 * ours['F']:.1f} us an image; an input gradient costs {ours['gradient'] / ours['F']:.2f} F")
    print("| attack | stand | s (CPU) |" + (" the original: stand | s (CPU) | ratio |" if theirs else ""))
    print("|---|---|---|" + ("---|---|---|" if theirs else ""))
    for name in ATTACKS:
        row = f"| {name} | {100 * ours['after'][name]:.1f} | {ours['seconds'][name]:.1f} |"
        if theirs and name in theirs["after"]:
            ratio = theirs["seconds"][name] / max(ours["seconds"][name], 1e-9)
            row += f" {100 * theirs['after'][name]:.1f} | {theirs['seconds'][name]:.1f} | {ratio:.2f} |"
        print(row)
    total = sum(ours["seconds"].values())
    per = total / max(standing, 1) / ours["F"]
    print(f"ours: {total:.1f} s, {per:.0f} F a survivor ({per / 9750:.2f} x 9,750), {ours['memory']:.0f} MB at most")
    square = ours["forwards"]["square"] * ours["F"] / max(ours["seconds"]["square"], 1e-9)
    print(f"Square runs at {100 * square:.0f} % of the plain forward rate")
    if theirs:
        whole = sum(theirs["seconds"].values())
        differ = sum(a != b for a, b in zip(ours["flags"], theirs["flags"]))
        print(
            f"the original: {whole:.1f} s, {theirs['memory']:.0f} MB; ratio {whole / total:.2f}; {differ} images differ"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet2b")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--folded", action="store_true", help="batch norm folded into the convolutions")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        arguments.out.write_text(json.dumps(one_side(arguments)))
        return
    ours = side("ours", arguments)
    show(arguments, ours, side("original", arguments) if arguments.reference else None)


if __name__ == "__main__":
    main()
