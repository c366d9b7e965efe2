"""What a pass through a network costs here: a copy of it is timed for a second or two, on images that are noise.

On a CPU the clock is the processor time of one thread: what else the machine does at the moment does not count. A stage
that works in several threads or processes divides by their number.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from autolora.backbones.classifier import Classifier
from autolora.training.speed import crashes_in_channels_last
from stages.common.runner import processes_asked_for
from stages.estimate.costs import Price

SECONDS = 0.4  # that each kind of pass is looked at
SMALL = 8  # images of the first look, which decides how many the others take
LEAST = 3  # looks, however long they take


def price_of(model: Classifier, batch: int, worth: Callable[[Price], bool] = lambda at_most: True) -> Price:
    """On the GPU where there is one. The network, its statistics and everybody's random numbers stay as they are.

    `worth`: whether a first look, which takes no pass for too cheap, leaves anything to be measured.
    """
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    with one_thread():
        return _price(model, batch, device, worth)


def threads() -> int:
    """By which a price on a CPU is divided, where one process does the work."""
    return 1 if torch.cuda.is_available() else torch.get_num_threads()


def training() -> int:
    """The same for training: its processes, or the threads of the only one."""
    number = processes_asked_for() or max(1, torch.cuda.device_count())
    return number if number > 1 else threads()


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _price(model: Classifier, batch: int, device: torch.device, worth: Callable[[Price], bool]) -> Price:
    layout = torch.contiguous_format if crashes_in_channels_last(model, device) else torch.channels_last
    twin = copy.deepcopy(model).to(device, memory_format=layout)  # type: ignore[call-overload]
    size = model.spec.image_size
    noise = torch.rand(batch, model.spec.channels, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    noise = noise.contiguous(memory_format=layout)
    some = noise[:SMALL]
    dearest = _timed(lambda: _step(twin, some), seconds=0.0) / len(some)  # a step, and in a small batch
    if not worth(Price(dearest, dearest, dearest)):
        return Price(dearest, dearest, dearest)
    affordable = int(SECONDS / dearest)
    x = noise[: max(len(some), affordable)]
    passes: list[Callable[[], object]] = [lambda: _forward(twin, x), lambda: _gradient(twin, x), lambda: _step(twin, x)]
    return Price(*(_timed(one, SECONDS) / len(x) for one in passes))


def _forward(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model.eval()(x)


def _gradient(model: nn.Module, x: torch.Tensor) -> None:
    seen = x.detach().requires_grad_(True)
    model.eval().requires_grad_(False)
    torch.autograd.grad(model(seen).logsumexp(1).sum(), seen)


def _step(model: nn.Module, x: torch.Tensor) -> None:
    model.train().requires_grad_(True)
    model.zero_grad()
    y = torch.zeros(len(x), dtype=torch.long, device=x.device)
    F.cross_entropy(model(x), y).backward()


def _timed(one: Callable[[], object], seconds: float) -> float:
    """The quickest of as many as fit: something else may slow one down, nothing makes one too quick."""
    one()  # apart: it allocates and compiles
    took: list[float] = []
    while len(took) < LEAST or sum(took) < seconds:
        start = _clock()
        one()
        took.append(_clock() - start)
    return min(took)


def _clock() -> float:
    if not torch.cuda.is_available():
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()
