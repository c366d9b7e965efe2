"""One process per GPU, or per core where there is none, and one thread in each: work that is shared out.

    with shared_out(work, number, runs) as first:      # the helpers call work() beside this one, which writes
        ... work() ...

What torchrun has started takes the processes that it is given. With one thread each, the number of cores changes no
image's flag.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from autolora.common.processes import cores, end_with_parent

MOST = 8
GRACE = 10.0  # seconds that a process may have ended, or fallen silent, before the first one draws a conclusion
Work = Callable[[], Any]
Runs = Callable[[Callable[[], None]], None]  # what stands around the work of a helper: how it tells an error


class OneEnded(RuntimeError):
    """One of several processes has died on its way."""


@contextmanager
def shared_out(work: Work, number: int, runs: Runs) -> Iterator[bool]:
    """Yields whether this is the first process. The others end with it, however it ends."""
    torch.set_num_threads(1)
    helpers = [] if "RANK" in os.environ else _start(number, work, runs)
    rank, patience = int(os.environ.get("RANK", 0)), 0.0
    try:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            _join(rank, helpers)
        yield rank == 0
        patience = 5.0  # what has failed waits for nobody
    except OneEnded:
        raise
    except RuntimeError as error:
        if _one_failed(helpers):  # and so cut the connection
            raise OneEnded(f"one of {number} processes has ended: its message is above") from error
        raise
    finally:
        for helper in helpers:
            _stop(helper, patience)
        if helpers:
            gc.unfreeze()
            for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                os.environ.pop(name, None)
        if dist.is_initialized():
            dist.destroy_process_group()


def usual() -> int:
    """How many, where nobody says it."""
    return torch.cuda.device_count() or per_core()


def per_core() -> int:
    """For work that a GPU takes no part in."""
    return min(cores(), MOST)


def _start(number: int, work: Work, runs: Runs) -> list[BaseProcess]:
    if number == 1:
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"OMP_NUM_THREADS": "1", "RANK": "0"}
    begin, parent = context().Process, os.getpid()
    helpers: list[BaseProcess] = [
        begin(target=_help, args=(rank, parent, work, runs), daemon=True) for rank in range(1, number)
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


def _help(rank: int, parent: int, work: Work, runs: Runs) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    end_with_parent(parent)

    def helper() -> None:
        with shared_out(work, 1, runs):
            work()

    runs(helper)


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
        raise OneEnded("the processes did not find each other: the reason is above")


def _require_alive(helpers: list[BaseProcess], joining: threading.Thread) -> None:
    """One that died while it imported would be waited for as long as the others may take."""
    for number, helper in enumerate(helpers, 1):
        if (code := helper.exitcode) is None:
            continue
        joining.join(GRACE)
        if joining.is_alive():
            for other in helpers:
                other.kill()
            raise OneEnded(
                f"process {number} of {len(helpers) + 1} ended with exit code {code} before the work began: "
                "its message is above"
            )


def _one_failed(helpers: list[BaseProcess]) -> bool:
    """It may still be telling why."""
    limit = time.monotonic() + GRACE
    while helpers and time.monotonic() < limit and not any(helper.exitcode for helper in helpers):
        helpers[0].join(0.2)
    return any(helper.exitcode for helper in helpers)


def _stop(helper: BaseProcess, seconds: float) -> None:
    helper.join(seconds)
    helper.kill()
    helper.join()
