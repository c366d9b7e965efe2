"""What Prefect costs per stage, over what DVC itself takes: a chain of stages that do nothing, run by both.

    python -m benchmarks.scheduling [--stages 6] [--repeats 3]

Wall and processor seconds, median of the repeats, on a server of its own (sqlite). The processor seconds are those of
this process and its children; the server's own are not in them.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pipelines.rehearsal import ROOT, Server

IDENTITY = ["-c", "user.email=benchmark@example.org", "-c", "user.name=benchmark"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server")
        try:
            start = time.perf_counter()
            server.start()
            print(f"server up after {time.perf_counter() - start:.1f} s")
            compare(server, chain(Path(folder) / "project", args.stages), args.stages, args.repeats)
        finally:
            server.stop()


def chain(folder: Path, stages: int) -> Path:
    """Stage i copies what stage i - 1 wrote."""
    folder.mkdir()
    lines = ["stages:"]
    for i in range(stages):
        lines += [f"  s{i}:", f"    cmd: cp {i}.txt {i + 1}.txt", f"    deps: [{i}.txt]", f"    outs: [{i + 1}.txt]"]
    (folder / "dvc.yaml").write_text("\n".join(lines))
    (folder / ".gitignore").write_text("*.txt\n")
    (folder / "0.txt").write_text("0")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], ["git", "add", "."]):
        subprocess.run(command, cwd=folder, check=True)
    subprocess.run(["git", *IDENTITY, "commit", "-qm", "chain"], cwd=folder, check=True)
    return folder


def compare(server: Server, folder: Path, stages: int, repeats: int) -> None:
    python = [sys.executable, "-m"]
    rows = {
        "dvc repro, all stale": ([*python, "dvc", "repro", "-q"], True),
        "pipelines.rebuild, all stale": ([*python, "pipelines.rebuild"], True),
        "pipelines.rebuild, up to date": ([*python, "pipelines.rebuild"], False),
    }
    print(f"{'':<32}{'wall s':>8}{'cpu s':>8}{'wall/stage':>12}")
    for name, (command, stale) in rows.items():
        taken = [measured(partial(run, server, folder, command), folder, stale, i) for i in range(repeats)]
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"{name:<32}{wall:>8.1f}{cpu:>8.1f}{wall / stages:>12.2f}")
    print(f"{stages} stages, {repeats} repeats, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {ROOT.name}")


def run(server: Server, folder: Path, command: list[str]) -> None:
    subprocess.run(command, cwd=folder, env=server.environment, check=True, capture_output=True)


def measured(work: Callable[[], None], folder: Path, stale: bool, number: int) -> tuple[float, float]:
    if stale:
        (folder / "0.txt").write_text(f"{time.time()} {number}")
        shutil.rmtree(folder / ".dvc" / "cache", ignore_errors=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


if __name__ == "__main__":
    main()
