"""Two clones of the same commit, in which all differs that must not matter: are the outputs the same bytes?

    python -m benchmarks.determinism                      two default runs
    python -m benchmarks.determinism --small              few epochs and images
    python -m benchmarks.determinism --finished CLONE     against one that has run, of the same commit

The second one lies deeper, in a folder of another name with a space, and runs in another time zone, with another
locale, umask and hash seed. Its number of processes and threads differs in the stages that promise the same bytes for
any (prepare, validate, evaluate, register); training and export add in the order of their threads, and keep theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from autolora.common.command_line import Command
from autolora.common.files import write_json
from benchmarks._project import ROOT, STAGES, Ended, Project, different
from stages.common.runner import this_machine

FREE = ("prepare", "validate", "evaluate", "register")  # of the number of processes and threads
SETTING = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C", "PYTHONHASHSEED": "12345", "COLUMNS": "40"}
UMASK = 0o077


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))


def plain(project: Project) -> None:
    project.env = {"OMP_NUM_THREADS": str(threads()), "PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    finished(project, project.repro())


def elsewhere(project: Project) -> None:
    """Stage by stage, since what may differ differs."""
    for stage in STAGES:
        project.env = SETTING | {"OMP_NUM_THREADS": str(threads())}
        if stage in FREE:
            project.env |= {"OMP_NUM_THREADS": str(threads() + 1), "AUTOLORA_PROCESSES": "3"}
        with project.start("repro", "--single-item", stage, umask=UMASK) as run:
            finished(project, run.ended())


def finished(project: Project, ended: Ended) -> None:
    if ended.code:
        sys.exit(f"the run in {project.folder} failed:\n{ended.text[-3000:]}")


def of_finished(folder: Path) -> Project:
    """One that has run; its commit must be ours, and its params.yaml too."""
    commits = [
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True, check=True).stdout
        for place in (folder, ROOT)
    ]
    if commits[0] != commits[1]:
        sys.exit(f"{folder} is at commit {commits[0][:12]}, and here is {commits[1][:12]}: check out the same one")
    return Project(folder.resolve())


def main(arguments: list[str] | None = None) -> int:
    parser = Command(
        __doc__,
        reads="this repository's last commit",
        writes="--results (JSON), and a table on stdout",
    )
    parser.add_argument("--small", action="store_true", help="few epochs and images")
    parser.add_argument("--finished", type=Path, metavar="CLONE", help="instead of a first run")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/determinism.json")
    chosen = parser.parse_args(arguments)
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="determinism-") as name:
        if chosen.finished:
            first = of_finished(chosen.finished)
        else:
            first = Project.clone(Path(name) / "a", small=chosen.small)
            plain(first)
        second = Project.clone(Path(name) / "b/deeper/another name", first.folder)
        (second.folder / "params.yaml").write_bytes((first.folder / "params.yaml").read_bytes())
        elsewhere(second)
        expected, found = first.outputs(), second.outputs()
        wrong = different(expected, found)
        epochs = yaml.safe_load((first.folder / "params.yaml").read_text())["finetune"]["epochs"]
    for path in sorted(expected):
        print("DIFFERENT" if path in wrong else "equal    ", path)
    record = {
        "command": "python -m benchmarks.determinism" + (" --small" if chosen.small else ""),
        "machine": this_machine(),
        "epochs": epochs,
        "outputs": len(expected),
        "different": wrong,
        "second run": SETTING
        | {"umask": f"{UMASK:03o}", "threads and processes": {s: f"{threads() + 1}, 3" for s in FREE}},
        "seconds": round(time.time() - began),
    }
    write_json(chosen.results, record)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
