"""Seconds per attack, ours and the original's, on one network, the same images and the same cores.

    python -m benchmarks.autoattack_speed --reference PATH                    # the comparisons of SUITE on one core
    python -m benchmarks.autoattack_speed --reference PATH --cores 2        # on two, by the clock: nothing else may run
    python -m benchmarks.autoattack_speed --reference PATH --net resnet2b --images 100 --batch 64 [--norm l2 --eps 0.25]

PATH is a checkout of github.com/fra31/auto-attack, which stays outside this repository; without it ours runs alone.
Sides run one after another, in processes of their own, so that peak memory can be compared. On one core both have one
thread, and time is processor time, for the machine may be shared. On more the original has as many threads and ours as
many processes of one thread, as `stages.evaluate` starts them; both attack as many times the images.

Both get the network as it was loaded: ours freezes its parameters, the original computes their gradients in FAB.
F, the time of one forward of one image in the plain network, is measured in the same process all along (`Price`). MB is
the most that a side's processes held (looked at twice a second), what they share counted once.
Sides: `plain`, `folded` (the attacked network itself has its batch norms folded and its channels last) and `mixed`
(precision="mixed").
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autolora import Threat, autoattack
from autolora.attacks.engine.fast_copies import folded_copy
from autolora.common.command_line import Command
from benchmarks._forward_clock import Price
from benchmarks.agreement_with_original import ATTACKS, SHARED, original
from benchmarks.zoo import cifar500, load_zoo
from stages.common.processes import processes


class Setup(NamedTuple):
    net: str
    norm: str
    eps: str
    images: int
    batch: int  # fits the number of images: the last batch of each attack is filled up with copies
    sides: tuple[str, ...] = ("plain",)


SUITE = (
    Setup("resnet2b", "linf", "2/255", 94, 64, ("plain", "mixed")),
    Setup("resnet4b", "linf", "2/255", 86, 64, ("plain", "mixed")),
    Setup("resnet20-robust2", "linf", "2/255", 16, 16, ("plain", "folded", "mixed")),
    Setup("resnet20-natural", "linf", "2/255", 96, 16),
    Setup("resnet20-natural", "linf", "8/255", 96, 16),
)


def clock(device: str, cores: int) -> float:
    """Processor time where one core works; else the wall's, after a GPU has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and cores == 1 else time.perf_counter()


def median_seconds(act: Callable[[], object], device: str, passes: int = 9) -> float:
    times = []
    for _ in range(passes):
        begin = clock(device, 1)
        act()
        times.append(clock(device, 1) - begin)
    return sorted(times)[passes // 2]


def share_of_peak(net: str, forward: float, device: str, size: int = 1024) -> float:
    """Of the operations a second of a product of two matrices, which is what the processor can do at best."""
    torch.set_num_threads(1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        load_zoo(SHARED, net)(cifar500(SHARED)[0][:1].float())
    a = torch.rand(size, size, device=device)
    return counter.get_total_flops() / forward / (2 * size**3 / median_seconds(lambda: a @ a, device))


def one_side(setup: Setup, name: str, reference: Path | None, cores: int, device: str) -> dict[str, Any]:
    torch.set_num_threads(cores if name == "original" else 1)
    x, y = cifar500(SHARED)
    x, y = x[: setup.images * cores].float().div(255).to(device), y[: setup.images * cores].to(device)
    model = load_zoo(SHARED, setup.net).to(device)
    threat = Threat(setup.norm, setup.eps)
    probe, now = x[torch.arange(setup.batch) % len(x)], partial(clock, device, cores)
    with Price(model, probe, now) as price:
        if name == "original":
            assert reference is not None
            found = original(reference, model, x, y, threat, 0, now)
        else:
            found = ours(setup, name, model, x, y, threat, cores)
    found["seconds"] = {attack: seconds * (1 - price.share) for attack, seconds in found["seconds"].items()}
    return found | {"F": price.forward, "gradient": price.gradient}


def ours(setup: Setup, name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, cores: int) -> dict[str, Any]:
    target = folded_copy(model, x[:2]) if name == "folded" else model
    precision = "mixed" if name == "mixed" else "float32"
    report = autoattack(target, x, y, threat, batch_size=setup.batch, precision=precision, show=False)
    by_processor = cores == 1 and x.device.type == "cpu"
    return {
        "after": {a.name: a.robust_accuracy for a in report.attacks},
        "seconds": {a.name: a.processor_seconds if by_processor else a.seconds for a in report.attacks},
        "forwards": {a.name: a.forwards for a in report.attacks},
        "flags": report.robust.int().tolist(),
    }


def side(setup: Setup, name: str, reference: Path | None, cores: int, device: str) -> dict[str, Any]:
    """In a process of its own, which starts others where ours has more cores."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "side.json"
        command = [sys.executable, "-m", "benchmarks.autoattack_speed", "--side", name, "--out", str(out)]
        command += ["--cores", str(cores), "--device", device]
        for key in ("net", "norm", "eps", "images", "batch"):
            command += [f"--{key}", str(getattr(setup, key))]
        command += ["--reference", str(reference)] if reference else []
        env = os.environ | {"AUTOLORA_PROCESSES": str(1 if name == "original" else cores)}
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as run:
            peak = most_memory(run)
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, command)
        return json.loads(out.read_text()) | {"memory": peak}


def most_memory(run: subprocess.Popen, every: float = 0.5) -> float:
    """MB that a process and its children held at most, looked at again and again until it ends."""
    peak = 0.0
    while True:
        peak = max(peak, memory(run.pid))
        try:
            run.wait(every)
            return peak
        except subprocess.TimeoutExpired:
            pass


def memory(process: int) -> float:
    """MB now. What a fork shares counts once, and so do the pages of files (torch's libraries): the most of any."""
    own, files = 0.0, 0.0
    with suppress(OSError, KeyError):  # one that has ended meanwhile
        children = (c for path in Path(f"/proc/{process}/task").glob("*/children") for c in path.read_text().split())
        for each in (str(process), *children):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()[1:]
            held = {name: int(rest.split()[0]) / 1024 for name, rest in (line.split(":", 1) for line in lines)}
            own += held["Pss_Anon"] + held["Pss_Shmem"]
            files = max(files, held["Rss"] - held["Anonymous"])
    return own + files


def run_side(setup: Setup, chosen: argparse.Namespace) -> None:
    attack = partial(one_side, setup, chosen.side, chosen.reference, chosen.cores, chosen.device)
    with processes(attack) as first:
        found = attack()
        if first:
            chosen.out.write_text(json.dumps(found))
    os._exit(0)  # torch's own way out reads 130 MB of its CUDA library, for either side


def compare(setup: Setup, reference: Path | None, cores: int, device: str) -> None:
    theirs = side(setup, "original", reference, cores, device) if reference else None
    sides = {name: side(setup, name, reference, cores, device) for name in setup.sides}
    first = sides[setup.sides[0]]
    n, share = len(first["flags"]), share_of_peak(setup.net, first["F"], device)
    print(f"\n{setup.net}, {setup.norm} {setup.eps}, {n} images, {sum(first['flags'])} stand; ", end="")
    print(f"batch {setup.batch}, {cores} core(s) of {device}, torch {torch.__version__}, {platform.machine()}")
    print(
        f"F {1e6 * first['F']:.1f} us an image, {100 * share:.0f} % of the operations a second of a product "
        f"of matrices; an input gradient costs {first['gradient'] / first['F']:.2f} F"
    )
    print("\n| | " + " | ".join(ATTACKS) + " | s in all | ratio | F a survivor | MB | flags that differ |")
    print("|---|" + "---|" * (len(ATTACKS) + 5))
    for name, found in (({"original": theirs} if theirs else {}) | sides).items():
        print(row(name, found, theirs, cores))
    for name, found in sides.items():
        rate = found["forwards"]["square"] * found["F"] / max(found["seconds"]["square"] * cores, 1e-9)
        print(f"{name}: Square makes forwards at {100 * rate:.0f} % of the plain forward rate")


def row(name: str, found: dict[str, Any], theirs: dict[str, Any] | None, cores: int) -> str:
    """Seconds of each attack, and in brackets what stands after it."""
    cells = [f"{found['seconds'].get(a, 0):.1f} ({100 * found['after'].get(a, 0):.1f})" for a in ATTACKS]
    total = sum(found["seconds"].values())
    standing = sum(found["flags"])
    processes = 1 if name == "original" else cores
    per = f"{total * processes / standing / found['F']:.0f}" if standing else "-"
    ratio = f"{sum(theirs['seconds'].values()) / total:.2f}" if theirs else "-"
    differ = str(sum(a != b for a, b in zip(found["flags"], theirs["flags"]))) if theirs else "-"
    return f"| {name} | " + " | ".join(cells) + f" | {total:.1f} | {ratio} | {per} | {found['memory']:.0f} | {differ} |"


def main() -> None:
    parser = Command(
        __doc__,
        reads="networks and images in ../shared, the original in PATH",
        writes="a table on stdout",
    )
    parser.add_argument("--net", help="one comparison on this network, instead of SUITE")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--sides", nargs="+", default=["plain"], choices=["plain", "folded", "mixed"])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    one = Setup(chosen.net, chosen.norm, chosen.eps, chosen.images, chosen.batch, tuple(chosen.sides))
    if chosen.side:
        return run_side(one, chosen)
    for setup in [one] if chosen.net else SUITE:
        compare(setup, chosen.reference, chosen.cores, chosen.device)


if __name__ == "__main__":
    main()
