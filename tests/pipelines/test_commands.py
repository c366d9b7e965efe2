"""A command under the process guard: lines as they come, its time limit, and no descendant left, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pipelines.execution import commands
from tests.pipelines.conftest import ROOT

# A family of three generations; the youngest leaves for a session of its own, as torchrun's workers do.
FAMILY = """\
import os, subprocess, sys, time
grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
child = f"import subprocess, sys, os, time; print(os.getpid(), flush=True); " \\
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True); time.sleep(600)"
print(os.getpid(), flush=True)
subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
"""


def lines_of(code: str, tmp_path, seconds: float = 60) -> list[str]:
    found: list[str] = []
    commands.run([sys.executable, "-c", code], tmp_path, commands.environment(), seconds, found.append)
    return found


def gone(pids: list[int], within: float = 20) -> bool:
    deadline = time.monotonic() + within
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_lines_and_progress_bars_arrive_one_by_one(tmp_path):
    code = r"""
import sys
print("one")
print("a 10%|", end="\r")
print("a 20%|", end="\r", flush=True)
print("two", file=sys.stderr)"""
    assert lines_of(code, tmp_path) == ["one", "a 10%|", "a 20%|", "two"]


def test_lines_are_live(tmp_path):
    """Each is handed on when it is written: the command does not end before its first line was seen."""
    code = r"""
import os, time
print("one", flush=True)
while not os.path.exists("one"):
    time.sleep(0.01)
print("two")"""
    commands.run(
        [sys.executable, "-c", code], tmp_path, commands.environment(), 60, lambda line: (tmp_path / line).touch()
    )
    assert (tmp_path / "two").exists()


def test_failure_carries_status_and_last_lines(tmp_path):
    with pytest.raises(commands.CommandFailed, match="exit status 3\nsorry"):
        lines_of("import sys; print('sorry'); sys.exit(3)", tmp_path)


def test_time_limit_kills_the_whole_family(tmp_path):
    pids: list[str] = []
    with pytest.raises(commands.TimeLimit, match="no end after 2 s, killed with its children"):
        commands.run([sys.executable, "-c", FAMILY], tmp_path, commands.environment(), 2, pids.append)
    assert len(pids) == 3
    assert gone([int(pid) for pid in pids])


def test_a_family_that_ignores_the_polite_signal_is_killed_too(tmp_path):
    deaf = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    pids: list[str] = []
    with pytest.raises(commands.TimeLimit):
        commands.run([sys.executable, "-c", deaf], tmp_path, commands.environment(), 1, pids.append)
    assert gone([int(pids[0])])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_family_ends_with_the_process_that_asked_for_it(tmp_path, number):
    """kill -9 gives that process no chance to clean up: the guard sees its pipe close."""
    caller = (
        "import sys; from pathlib import Path; from pipelines.execution import commands\n"
        f"commands.run([sys.executable, '-c', {FAMILY!r}], Path('.'), commands.environment(), 600, "
        "lambda line: print(line, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(process.stdout.readline()) for _ in range(3)]
    assert all(alive(pid) for pid in pids)
    os.kill(process.pid, number)
    process.wait()
    assert gone(pids)


def test_flow_process_ends_with_its_worker(tmp_path):
    """A worker killed with -9 leaves its flow process behind: that one notices, and so its family goes as well."""
    flow = (
        "import sys; from pathlib import Path; from pipelines.execution import commands\n"
        "commands.end_with_parent(0.1)\n"
        f"commands.run([sys.executable, '-c', {FAMILY!r}], Path('.'), commands.environment(), 600, "
        "lambda line: print(line, flush=True))"
    )
    worker = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {flow!r}])"
    process = subprocess.Popen([sys.executable, "-c", worker], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(process.stdout.readline()) for _ in range(3)]
    process.kill()
    process.wait()
    assert gone(pids)
