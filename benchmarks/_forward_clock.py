"""F, the time of one forward of one image, looked at again and again while something else works.

    with Price(model, x, clock) as price:
        ... an attack ...
    price.forward, price.gradient       # seconds an image
    price.share                         # of the time, that looking took: it is not the attack's

A shared machine is a quarter faster or slower from one minute to the next, and a process slow in its first seconds. So
F from before or after an attack of minutes is the price of another machine. An alarm interrupts the attack every few
seconds for three forwards, of which the last counts: what the attack had in the cache is gone by then. A gradient is
looked at in the end only: in the middle of one of the attack's it would hold as much memory again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

EVERY = 3.0  # seconds


class Price:
    """In the main thread, the only one that an alarm reaches."""

    def __init__(self, model: nn.Module, x: Tensor, clock: Callable[[], float], every: float = EVERY) -> None:
        self.model, self.x, self.clock, self.every = model, x, clock, every
        self.forwards: list[float] = []
        self.gradients: list[float] = []
        self.spent, self.share = 0.0, 0.0

    def __enter__(self) -> Price:
        self.begin = self.clock()
        self.before = signal.signal(signal.SIGALRM, lambda number, frame: self.look())
        signal.siginterrupt(signal.SIGALRM, False)
        signal.setitimer(signal.ITIMER_REAL, self.every, self.every)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)
        self.share = self.spent / (self.clock() - self.begin)
        self.look()  # so that there is a price for an attack of a moment, too
        self.gradients = [self._seconds(self._gradient) for _ in range(5)]

    def look(self) -> None:
        begin = self.clock()
        with torch.autocast(self.x.device.type, enabled=False):  # it may be the attack's that was interrupted
            self.forwards.append([self._seconds(self._forward) for _ in range(3)][-1])
        self.spent += self.clock() - begin

    @property
    def forward(self) -> float:
        return median(self.forwards) / len(self.x)

    @property
    def gradient(self) -> float:
        return median(self.gradients) / len(self.x)

    def _seconds(self, act: Callable[[], object]) -> float:
        begin = self.clock()
        act()
        return self.clock() - begin

    def _forward(self) -> None:
        with torch.no_grad():
            self.model(self.x)

    def _gradient(self) -> None:
        point = self.x.clone().requires_grad_(True)
        with torch.enable_grad():
            torch.autograd.grad(self.model(point).sum(), point)
