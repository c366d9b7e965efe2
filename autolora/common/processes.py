"""How many processes there are, what this one holds, and that none outlives the one that started it, however that ends.

    end_with_parent()                 # the first line of a worker

Signals to a process group miss workers in sessions of their own, as torchrun's are.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # of sys/prctl.h


def end_with_parent(parent: int | None = None) -> None:
    """Kill this process when the one that started it ends, also by SIGKILL. `parent`: its id, where that is known.

    On Linux the kernel does it, at once; it watches the thread that started this process, which should be the main one.
    Elsewhere a thread looks once a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    elif hasattr(os, "getppid"):
        threading.Thread(target=_watch, args=(parent or os.getppid(),), daemon=True).start()
    if parent is not None and os.getppid() != parent:  # it ended before we came here
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    import resource  # of Unix alone, as nothing else here

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
