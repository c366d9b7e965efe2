"""Does a set train that is larger than the memory? An epoch of the real loop in a control group that kills at a limit.

    sudo python -m benchmarks.larger_than_memory --limit 8 --images 40000   # 10 GB of photos, 100 classes, 224 pixels

Writes the photos as `prepare` does (uint8, 256 pixels on the short side, memory-mapped), trains on them with random
crops, and prints the peak of what the process itself holds, and of what the group holds with the kernel's cache of the
file, which gives way. It trains naturally and the network is one convolution: this measures what the data take,
whatever network and attack take on their device. Needs Linux and the right to make a control group (version 1 or 2).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autolora import Threat
from autolora.common.command_line import Command
from autolora.data.ragged import rectangles
from autolora.training.loop import finetune

CLASSES, SIZE, SHAPE = 100, 224, (256, 341)
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max", "memory.peak"),
)


def main() -> None:
    parser = Command(
        __doc__,
        reads="nothing: the photos are made up",
        writes="photos in .work while it runs; figures on stdout",
    )
    parser.add_argument("--limit", type=float, default=8, help="GB")
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.folder:
        write(chosen.folder, chosen.images)  # here too: cached pages are charged to the group that touched them first
        return train(chosen.folder)
    with tempfile.TemporaryDirectory(dir=".work") as scratch:
        limited(Path(scratch), int(chosen.limit * 1e9), chosen.images)


def write(folder: Path, count: int) -> None:
    rng, one = np.random.default_rng(0), 3 * SHAPE[0] * SHAPE[1]
    with open(folder / "images.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count * one,)})
        block = rng.integers(0, 256, 64 * one, np.uint8).tobytes()
        for start in range(0, count, 64):
            file.write(block[: min(64, count - start) * one])


def limited(folder: Path, limit: int, images: int) -> None:
    root, most, peak = next(g for g in GROUPS if g[0].is_dir())
    group = root / f"autolora-{os.getpid()}"
    group.mkdir()
    try:
        (group / most).write_text(str(limit))
        joining = f"echo $$ > {group / 'cgroup.procs'}; exec {sys.executable} -m benchmarks.larger_than_memory"
        joining += f" --folder {folder} --images {images}"
        subprocess.run(["sh", "-c", joining], check=True)
        held = int((group / peak).read_text())
        print(f"limit {limit / 1e9:.1f} GB; the group's peak, with the file's cached pages: {held / 1e9:.2f} GB")
    finally:
        group.rmdir()


def train(folder: Path) -> None:
    torch.set_num_threads(1)
    flat = np.load(folder / "images.npy", mmap_mode="r")
    count = len(flat) // (3 * SHAPE[0] * SHAPE[1])
    images, labels = rectangles(flat, np.array([SHAPE] * count)), torch.arange(count) % CLASSES
    held_out = torch.randint(0, 256, (CLASSES, 3, SIZE, SIZE), dtype=torch.uint8), torch.arange(CLASSES)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    begin = time.perf_counter()
    finetune(model, (images, labels), held_out, Threat("linf", "8/255"), method="natural", epochs=1, progress=False)
    taken = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{count} images of {CLASSES} classes, {len(flat) / 1e9:.1f} GB: one epoch, {count / taken:.0f} images/s")
    print(f"peak of the process, mapped pages of the file among it: {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
