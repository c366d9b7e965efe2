"""One process per GPU, or per core where there is none, and one thread in each: a stage that shares its images out.

    with processes(work) as first:      # the helpers call work() beside this one, which writes
        ... work() ...

Started by torchrun, the stage takes the processes it is given. `AUTOLORA_PROCESSES` sets their number. With one thread
each, the number of cores changes no image's flag.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from autolora.attacks.verdicts import CheckFailed
from autolora.common.processes import end_with_parent
from stages.common.errors import TryAgain
from stages.common.runner import cores, main, processes_asked_for

MOST = 8
GRACE = 10.0  # seconds that a process may have ended before the first one has joined


@contextmanager
def processes(work: Callable[[], Any]) -> Iterator[bool]:
    """Yields whether this is the first process. The others end with it, however it ends."""
    torch.set_num_threads(1)
    helpers = [] if "RANK" in os.environ else _start(count(), work)
    rank = int(os.environ.get("RANK", 0))
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            _join(rank, helpers)
        yield rank == 0
    except CheckFailed:
        if rank > 0:  # every process comes to the same verdict; the first one tells it
            sys.exit(1)
        raise
    finally:
        for helper in helpers:
            _stop(helper)
        if helpers:
            gc.unfreeze()
            for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                os.environ.pop(name, None)
        if dist.is_initialized():
            dist.destroy_process_group()


def count() -> int:
    return processes_asked_for() or torch.cuda.device_count() or min(cores(), MOST)


def _start(number: int, work: Callable[[], Any]) -> list[BaseProcess]:
    if number == 1:
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"OMP_NUM_THREADS": "1", "RANK": "0"}
    begin, parent = context().Process, os.getpid()
    helpers: list[BaseProcess] = [
        begin(target=_help, args=(rank, parent, work), daemon=True) for rank in range(1, number)
    ]
    gc.collect()
    gc.freeze()  # until the end: a collection writes into every object it looks at, and so would copy what is shared
    for helper in helpers:
        helper.start()
    return helpers


def context() -> ForkContext | SpawnContext:
    """A fork shares what is imported and read (torch alone: 280 MB, seconds). A GPU does not come along, nor would
    autograd, once it has run."""
    if sys.platform == "linux" and not torch.cuda.is_available():
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


def _help(rank: int, parent: int, work: Callable[[], Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    end_with_parent(parent)

    def helper() -> None:
        with processes(work):
            work()

    main(helper)


def _join(rank: int, helpers: list[BaseProcess]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    joining = threading.Thread(
        target=dist.init_process_group, args=("gloo",), kwargs={"timeout": timedelta(hours=24)}, daemon=True
    )
    joining.start()
    while joining.is_alive():
        joining.join(0.2)
        _require_alive(helpers, joining)
    if not dist.is_initialized():
        raise TryAgain("the processes did not find each other: the reason is above")


def _require_alive(helpers: list[BaseProcess], joining: threading.Thread) -> None:
    """One that died while it imported would be waited for as long as the others may take."""
    for number, helper in enumerate(helpers, 1):
        if (code := helper.exitcode) is None:
            continue
        joining.join(GRACE)
        if joining.is_alive():
            for other in helpers:
                other.kill()
            raise TryAgain(
                f"process {number} of {len(helpers) + 1} ended with exit code {code} before the work began: "
                "its message is above"
            )


def _stop(helper: BaseProcess) -> None:
    helper.join(5)
    helper.kill()
    helper.join()
