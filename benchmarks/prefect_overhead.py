"""What Prefect costs per stage, over what DVC itself takes: a chain of stages that do nothing, run by both.

    python -m benchmarks.prefect_overhead                          about two minutes on a quiet machine
    python -m benchmarks.prefect_overhead --stages 8 --repeats 10

Wall and processor seconds, smallest, median and largest of n repeats, on a server of its own (sqlite) that is up before
the clock starts; one round before the first is thrown away. The four ways take turns, so that a load that comes and
goes meets them alike; what a stage costs is a difference within each round. The processor seconds are those of the
command and its children; the server's own are not in them.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from autolora.common.command_line import Command
from tools.rehearse_failover import Server

IDENTITY = ["-c", "user.email=benchmark@example.org", "-c", "user.name=benchmark"]


def main() -> None:
    parser = Command(__doc__, reads="nothing", writes="a temporary folder; a table on stdout")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
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
    """A round is all four ways, one after the other."""
    rounds = [one_round(server, folder) for _ in range(1 + repeats)][1:]
    show("", [])
    for name in rounds[0]:
        show(name, [taken[name] for taken in rounds])
    for tool in ("dvc repro", "pipelines.rebuild"):
        stale, fresh = ([taken[f"{tool}, {state}"] for taken in rounds] for state in ("all stale", "up to date"))
        each = [((a[0] - b[0]) / stages, (a[1] - b[1]) / stages) for a, b in zip(stale, fresh, strict=True)]
        show(f"{tool}, a stage that ran", each)
    print(f"{stages} stages, n = {repeats}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions()}")


def one_round(server: Server, folder: Path) -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of each way."""
    dvc, ours = [sys.executable, "-m", "dvc", "repro", "-q"], [sys.executable, "-m", "pipelines.rebuild"]
    taken = {}
    for name, command in (("dvc repro", dvc), ("pipelines.rebuild", ours)):
        make_stale(folder)
        for state in ("all stale", "up to date"):
            taken[f"{name}, {state}"] = measured(partial(run, server, folder, command))
    return taken


def show(name: str, taken: list[tuple[float, float]]) -> None:
    """One line of the table; its head where nothing was taken."""
    columns = ["wall min", "median", "max", "cpu min", "median", "max"]
    if taken:
        three = [(min(column), statistics.median(column), max(column)) for column in zip(*taken, strict=True)]
        columns = [f"{value:.2f}" for values in three for value in values]
    print(f"{name:<36}" + "".join(f"{column:>10}" for column in columns), flush=True)


def versions() -> str:
    return ", ".join(
        [*(f"{name} {version(name)}" for name in ("prefect", "dvc")), f"Python {platform.python_version()}"]
    )


def run(server: Server, folder: Path, command: list[str]) -> None:
    subprocess.run(command, cwd=folder, env=server.environment, check=True, capture_output=True)


def make_stale(folder: Path) -> None:
    """New content at the start of the chain, which no cache knows."""
    (folder / "0.txt").write_text(uuid.uuid4().hex)


def measured(work: Callable[[], None]) -> tuple[float, float]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
