"""One process per GPU, or per core where there is none, and one thread in each: a stage that shares its images out.

    with processes(work) as first:      # the helpers call work() beside this one, which writes
        ... work() ...

Started by torchrun, the stage takes the processes it is given. `AUTOLORA_PROCESSES` sets their number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from autolora.attacks.verdicts import CheckFailed
from autolora.common.shared_out import OneEnded, shared_out, usual
from stages.common.errors import TryAgain
from stages.common.runner import main, processes_asked_for


@contextmanager
def processes(work: Callable[[], Any]) -> Iterator[bool]:
    """Yields whether this is the first process. The others end with it, however it ends."""
    try:
        with _told_once(), shared_out(work, count(), _as_helper) as first:
            yield first
    except OneEnded as error:
        raise TryAgain(str(error)) from None


@contextmanager
def _told_once() -> Iterator[None]:
    """Every process comes to the same verdict; the first one tells it."""
    try:
        yield
    except CheckFailed:
        if int(os.environ.get("RANK", 0)) > 0:
            sys.exit(1)
        raise


def _as_helper(work: Callable[[], None]) -> None:
    def helper() -> None:
        with _told_once():
            work()

    main(helper)


def count() -> int:
    return processes_asked_for() or usual()
