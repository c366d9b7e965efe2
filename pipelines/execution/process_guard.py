"""Run a command whose whole family dies with the process that asked for it, however that process dies.

    python -m pipelines.execution.process_guard COMMAND ...        with a pipe on stdin, held open by the caller

The kernel closes the pipe when the caller ends, kill -9 included; then every descendant is killed, also those that have
moved to a session of their own (torchrun's workers do). On Linux orphans go to this process, so that none is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

GRACE = 3.0  # seconds between the polite signal and the other one
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(command: list[str]) -> int:
    """The command's exit status, or 143 when the family was ended because the caller went away."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    threading.Thread(target=wait_for_caller, daemon=True).start()
    try:
        return child.wait()
    finally:
        end_family()


def wait_for_caller() -> None:
    """Returns from the read only when the other end of the pipe is closed."""
    while os.read(0, 1):
        pass
    end_family()
    os._exit(143)


def end_family() -> None:
    """Ask all descendants to stop, then make them; those that are born meanwhile too."""
    deadline = time.monotonic() + GRACE
    while family := psutil.Process().children(recursive=True):
        late = time.monotonic() > deadline
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if late else process.terminate()
        psutil.wait_procs(family, timeout=0.5)


def adopt_orphans() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Between fork and exec: should this process itself be killed with -9, its child goes too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", help="what to run; all that follows are its arguments")
    parser.parse_args(sys.argv[1:2])
    sys.exit(main(sys.argv[1:]))
