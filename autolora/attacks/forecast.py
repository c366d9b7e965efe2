"""How long an evaluation takes at most, told once: as soon as its first attack has run for some seconds.

    forecast = Forecast(work=1e6, tell=print);   forecast.hear(512) with every step  ->  tell(seconds)

Work is counted in F, one forward of one image. At most, because images that break early cost less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TIMED = 5.0  # seconds before anything is told


class Forecast:
    def __init__(self, work: float, tell: Callable[[float], object], clock: Callable[[], float] | None = None) -> None:
        self.work, self.tell, self.clock = work, tell, clock or time.monotonic
        self.begun: float | None = None
        self.done, self.told = 0.0, False

    def hear(self, work: float) -> None:
        """So much more is done. What came before the first call is left out: it warmed up."""
        now = self.clock()
        if self.begun is None:
            self.begun = now
            return
        self.done += work
        if not self.told and now - self.begun >= TIMED and self.done:
            self.told = True
            self.tell(self.work * (now - self.begun) / self.done)
