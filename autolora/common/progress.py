"""How far a long piece of work is: a bar on a terminal and in a notebook, elsewhere one line every half minute.

    with bar(total=60, what="autolora", unit="epoch") as progress:
        progress.update(1)

In a log file, CI or Prefect the line says who is at work, at what, how far it is, and how long it will still take:

    finetune: autolora: 42%| 25 of 60 epochs, 3 min so far, about 4 min still
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
AT_ONCE = 5.0  # seconds
WIDTH, HEIGHT = 80, 24  # of a terminal that says it has no size
_who: ContextVar[str] = ContextVar("who", default="")


@contextmanager
def named(who: str) -> Iterator[None]:
    """Whose progress it is: lines begin with it."""
    before = _who.set(who)
    try:
        yield
    finally:
        _who.reset(before)


def bar(total: int | None, what: str, unit: str = "step", **options: Any) -> tqdm:
    """A tqdm bar, whose `update`, `total` and `set_description_str` mean what they always do; `options` are tqdm's.

    Nothing to do shows nothing: tqdm would say "0step".
    """
    file: Any = options.setdefault("file", sys.stderr)
    shown = {"total": total, "desc": what, "unit": unit, **options}
    shown["disable"] = options.get("disable") or total == 0
    if in_notebook():
        from tqdm.autonotebook import tqdm as in_page

        return in_page(**shown)
    if not file.isatty():
        return Lines(**shown)
    return tqdm(**_size(file), **({"mininterval": 1} | shown))


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def _size(file: Any) -> dict[str, Any]:
    """Some terminals of containers and CI have no width: tqdm would show nothing but "more hidden"."""
    try:
        known = min(os.get_terminal_size(file.fileno())) > 0
    except (OSError, ValueError):  # it is no real file
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": WIDTH, "nrows": HEIGHT}


class Lines(tqdm):
    """Whole lines, now and then. Work that is done within the first half minute says nothing.

    What follows at once is more of the same work: four attacks of twenty seconds each are no silence of eighty.
    """

    monitor_interval = 0  # no thread beside the work
    before = (0.0, 0.0)  # when the last of these closed, and when its next line was due

    def __init__(self, **options: Any) -> None:
        closed, due = Lines.before
        now = time.monotonic()
        self.due = due if 0 <= now - closed < AT_ONCE else now + EVERY
        # miniters: ask the clock at every step, since steps may become slower than they began
        super().__init__(**(options | {"mininterval": 0.1, "miniters": 1, "delay": 0.1}))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if msg is None and time.monotonic() >= self.due:
            self.due = time.monotonic() + EVERY
            print(self.line(), file=self.fp, flush=True)
        return False

    def clear(self, *_: Any, **__: Any) -> None:
        """There is nothing on the screen to clear."""

    def close(self) -> None:
        self.leave = False
        if not self.disable:
            Lines.before = (time.monotonic(), self.due)
        super().close()

    def line(self) -> str:
        who, what, said = _who.get(), self.desc.removesuffix(": "), self.format_dict
        head = f"{what}: " if not who or what.startswith(who) else f"{who}: {what}: "
        took = f"{duration(said['elapsed'])} so far"
        if not self.total:
            return f"{head}{self.n:,} {self.unit.strip()}s, {took}"
        rate = said["rate"] or (self.n - self.initial) / said["elapsed"]
        left = f", about {duration((self.total - self.n) / rate)} still" if rate else ""
        more = f" ({self.postfix})" if self.postfix else ""
        done = f"{100 * self.n / self.total:.0f}%| {self.n:,} of {self.total:,} {self.unit.strip()}s"
        return f"{head}{done}, {took}{left}{more}"


def duration(seconds: float) -> str:
    """20 s, 4 min, 2 h 05 min, 3 days 4 h: no finer than anybody wants to know."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"


def size(count: float) -> str:
    """Of so many bytes, as coarse."""
    megabytes = count / 2**20
    if megabytes >= 1024:
        return f"{megabytes / 1024:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{megabytes:.1f} MB"
