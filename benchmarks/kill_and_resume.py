"""Kill an evaluation with SIGKILL, again and again, and let it go on: its flags must be those of an undisturbed run.

    python -m benchmarks.kill_and_resume            [--kills 4] [--processes 1] [--precision float32] [--queries 5000]

A small network with random weights, 32 images, all four attacks. Prints what each life of the run left in the progress
folder, and compares flags and adversarial images to the bit. Exit code 1 if they differ.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from autolora import Threat, autoattack
from autolora.attacks.autoattack import PRECISIONS
from autolora.attacks.report import Report
from autolora.attacks.versions import Budget
from autolora.common.command_line import Command
from autolora.common.processes import end_with_parent

IMAGES, SIDE, THREAT = 32, 8, Threat("linf", 0.04)


def evaluate(progress: Path | None, precision: str, queries: int) -> Report:
    """The same evaluation in every life."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = (torch.rand(IMAGES, 3, SIDE, SIDE) * 255).round() / 255
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(128, 6)
    )
    with torch.no_grad():
        net(x)  # running statistics
        y = net.eval()(x).argmax(1)
    budget = Budget(queries=queries)
    return autoattack(
        net, x, y, THREAT, progress=progress, batch_size=8, precision=precision, budget=budget, show=False
    )


def life(folder: Path, precision: str, queries: int) -> None:
    end_with_parent()  # torchrun's workers lead sessions of their own: a kill of torchrun alone leaves them waiting
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo")
    report = evaluate(folder / "progress", precision, queries)
    if int(os.environ.get("RANK", 0)) == 0:
        np.savez(folder / "end.npz", robust=report.robust.numpy(), adversarial=report.adversarial.numpy())


def known(folder: Path) -> int:
    """Jobs (image and attempt of an attack) that the progress folder knows."""
    total = 0
    for path in (folder / "progress").glob("*.npz"):
        with np.load(path) as data:
            total += len(data["ids"])
    return total


def command(folder: Path, processes: int, precision: str, queries: int) -> list[str]:
    own = ["-m", "benchmarks.kill_and_resume", "--life", str(folder), "--precision", precision]
    own += ["--queries", str(queries)]
    if processes == 1:
        return [sys.executable, *own]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *own]


def killed(folder: Path, command: list[str], patience: float) -> bool:
    """One life, ended by SIGKILL once it has added something and a random moment has passed; False if it was faster."""
    before, begin = known(folder), time.monotonic()
    child = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and known(folder) <= before and time.monotonic() - begin < 300:
        time.sleep(0.02)
    time.sleep(random.uniform(0, patience))
    alive = child.poll() is None
    if alive:
        end_family(child)
    child.wait()
    return alive


def end_family(parent: psutil.Popen) -> None:
    """SIGKILL for it and for all its descendants, in whatever session they are."""
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family[1:], timeout=60)


def main() -> int:
    parser = Command(
        __doc__,
        reads="nothing: the network has random weights",
        writes="a temporary folder; what each life left, on stdout",
    )
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--queries", type=int, default=5000, help="of Square, for each image")
    parser.add_argument("--life", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.life:
        life(arguments.life, arguments.precision, arguments.queries)
        return 0
    whole = evaluate(None, arguments.precision, arguments.queries)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        again = command(folder, arguments.processes, arguments.precision, arguments.queries)
        for number in range(arguments.kills):
            if not killed(folder, again, 1.0):
                break
            print(f"killed {number + 1}: {known(folder)} jobs are kept", flush=True)
        subprocess.run(again, check=True)
        with np.load(folder / "end.npz") as end:
            flags = int((end["robust"] != whole.robust.numpy()).sum())
            pixels = int((end["adversarial"] != whole.adversarial.numpy()).sum())
    print(
        f"{IMAGES} images, {int(whole.robust.sum())} stand: {flags} flags and {pixels} pixels differ from the whole run"
    )
    return int(flags > 0 or pixels > 0)


if __name__ == "__main__":
    sys.exit(main())
