"""Several processes of one stage: one that dies on its way is noticed at once, and a failure is told once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.common.errors import AGAIN, MEND

STAGE = """
import multiprocessing, os, time
import torch
import torch.distributed as dist
from autolora.attacks.verdicts import Check, CheckFailed
from autolora.common import shared_out as module
from stages.common.processes import processes
from stages.common.runner import main

module.context = lambda: multiprocessing.get_context("{way}")
whole = dist.init_process_group

def joining(*args, **kwargs):
    if os.environ["RANK"] == "1" and "{does}" == "dies":
        os._exit(3)  # as one that is killed
    whole(*args, **kwargs)

dist.init_process_group = joining

def work():
    if "{does}" == "fails":
        raise CheckFailed([Check(10, "the attack works", "fail", "planted")])
    if "{does}" == "sleeps":
        os.write(1, f"{{os.getpid()}}\\n".encode())  # one write: three processes share the pipe
        time.sleep(600)
    total = torch.ones(())
    dist.all_reduce(total)
    return int(total), torch.get_num_threads()

def stage():
    large = torch.ones(2000, 2000) @ torch.ones(2000, 2000)  # wakes as many threads as there are cores
    with processes(work):
        print(*work())

if __name__ == "__main__":
    main(stage)
"""


def script(folder: Path, way: str, does: str) -> str:
    path = folder / "stage.py"
    path.write_text(STAGE.format(way=way, does=does))
    return str(path)


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(root), "AUTOLORA_PROCESSES": "3"}


def run(python: str, folder: Path, root: Path, way: str, does: str) -> subprocess.CompletedProcess:
    line = [python, script(folder, way, does)]
    return subprocess.run(line, capture_output=True, text=True, env=environment(root), timeout=120)


ways = pytest.mark.parametrize("way", ["fork", "spawn"])


@ways
@pytest.mark.slow
def test_all_work_and_each_has_one_thread(python: str, tmp_path: Path, root: Path, way: str) -> None:
    ended = run(python, tmp_path, root, way, "works")
    assert (ended.returncode, ended.stdout) == (0, "3 1\n"), ended.stderr


@ways
@pytest.mark.slow
def test_one_that_dies_on_its_way_is_not_waited_for(python: str, tmp_path: Path, root: Path, way: str) -> None:
    ended = run(python, tmp_path, root, way, "dies")
    assert ended.returncode == AGAIN
    assert "stage: process 1 of 3 ended with exit code 3" in ended.stderr
    assert "Traceback" not in ended.stderr


@ways
@pytest.mark.slow
def test_a_failed_check_is_told_once(python: str, tmp_path: Path, root: Path, way: str) -> None:
    ended = run(python, tmp_path, root, way, "fails")
    assert ended.returncode == MEND
    assert ended.stderr.count("planted") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_no_helper_outlives_a_killed_stage(tmp_path: Path, root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, script(tmp_path, "fork", "sleeps")], stdout=subprocess.PIPE, text=True, env=environment(root)
    ) as stage:
        assert stage.stdout
        ids = [int(stage.stdout.readline()) for _ in range(3)]
        os.kill(stage.pid, signal.SIGKILL)
    limit = time.monotonic() + 30
    while left := [i for i in ids if alive(i)]:
        assert time.monotonic() < limit, left
        time.sleep(0.2)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
