"""Several processes of one stage: one that dies on its way is noticed at once, and a failure is told once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STAGE = """
import os
if os.environ.get("RANK") == "1" and {dies}:
    os._exit(3)  # as one that is killed, or fails while it imports
from autolora.attacks.report import Check
from autolora.diagnostics import CheckFailed
from stages.processes import processes
from stages.work import main

def stage():
    with processes() as first:
        raise CheckFailed([Check(10, "the attack works", "fail", "planted")])

main(stage)
"""


def run(folder: Path, root: Path, dies: bool) -> subprocess.CompletedProcess:
    path = folder / "stage.py"
    path.write_text(STAGE.format(dies=dies))
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "AUTOLORA_PROCESSES": "3"}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.slow
def test_one_that_dies_on_its_way_is_not_waited_for(tmp_path: Path, root: Path) -> None:
    ended = run(tmp_path, root, dies=True)
    assert ended.returncode == 1
    assert "stage: process 1 of 3 ended with exit code 3" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_failed_check_is_told_once(tmp_path: Path, root: Path) -> None:
    ended = run(tmp_path, root, dies=False)
    assert ended.returncode == 1
    assert ended.stderr.count("planted") == 1
    assert "Traceback" not in ended.stderr
