"""A worker does not outlive the process that started it; locks work without fcntl."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from autolora.common.files import AtWork, locked

WORKER = (
    "import sys, time; from autolora.common.processes import end_with_parent\n"
    "end_with_parent(*map(int, sys.argv[1:])); print('in', flush=True); time.sleep(600)"
)
PARENT = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE, start_new_session=True)\n"
    "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
)


def test_a_worker_in_a_session_of_its_own_ends_with_a_parent_that_is_killed(root):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, WORKER], cwd=root, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=60)


def test_a_worker_whose_parent_is_gone_already_ends(root):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    late = subprocess.run([sys.executable, "-c", WORKER, str(gone.pid)], cwd=root, timeout=60, capture_output=True)
    assert late.returncode == 1
    assert late.stdout == b""


@pytest.mark.slow
def test_the_library_does_without_fcntl(root):
    """As on Windows, where there is no such module."""
    code = (
        "import sys; sys.modules['fcntl'] = None; import autolora.common.downloads, autolora.common.files, "
        "autolora.common.processes, autolora.training.resume"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ASKS = """
import sys
from pathlib import Path
from autolora.common.files import locked
folder = Path(sys.argv[1])
print("asking", flush=True)
with locked(folder / "lock", wait=True):
    print((folder / "left by the holder").exists())
"""


def test_who_finds_a_lock_held_is_told_or_waits(root, tmp_path):
    with locked(tmp_path / "lock"):
        with pytest.raises(AtWork, match="another process is at work"), locked(tmp_path / "lock"):
            pass
        other = subprocess.Popen([sys.executable, "-c", ASKS, str(tmp_path)], cwd=root, stdout=-1, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "asking\n"
        (tmp_path / "left by the holder").touch()
    assert other.communicate(timeout=60)[0] == "True\n"
