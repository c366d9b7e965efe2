"""How long an evaluation may take, told once after the first timed steps; the clock is the test's."""

from __future__ import annotations

import pytest
import torch

from autolora import Threat
from autolora.attacks import forecast as module
from autolora.attacks.autoattack import autoattack_of
from autolora.attacks.evaluation import Settings, forecast, opened
from autolora.attacks.forecast import Forecast
from autolora.attacks.versions import Budget, plan_of
from autolora.data.images import TestImages
from tests.attacks.nets import Linear, images


def test_it_tells_once_and_leaves_the_warm_up_out() -> None:
    moments, told = iter([0.0, 100.0, 103.0, 106.0, 200.0]), []
    made = Forecast(1200, told.append, lambda: next(moments))
    assert next(moments) == 0.0  # whatever happened before
    for done in (500, 30, 30, 40):  # the first took long, and tells nothing of the others
        made.hear(done)
    assert told == [1200 * 6 / 60]


def test_a_fast_evaluation_is_not_announced() -> None:
    told: list[float] = []
    made = Forecast(100, told.append, lambda: 1.0)
    for _ in range(10):
        made.hear(10)
    assert not told


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "rand"])
def test_the_work_that_is_foretold_is_what_unbroken_images_cost(norm: str, version: str, monkeypatch) -> None:
    """Nothing breaks at this radius, so that every image costs all there is; one second for each F."""
    done: list[float] = []
    monkeypatch.setattr(module.Forecast, "hear", lambda _, work: done.append(work))
    kept: list[Forecast] = []
    create = module.Forecast.__init__

    def noted(self, *arguments) -> None:
        create(self, *arguments)
        kept.append(self)

    monkeypatch.setattr(module.Forecast, "__init__", noted)
    net = Linear(5)
    x = images(8)
    y = net(x).argmax(1)
    settings = Settings(version, budget=Budget(steps=4, queries=6, samples=2), batch_size=8, show=False, tell=print)
    report = autoattack_of(net, TestImages.of(x, y), Threat(norm, 1e-5), settings)
    assert report.robust.all()
    assert sum(done) == kept[0].work == sum(a.forwards for a in report.attacks)


def test_only_what_is_right_counts() -> None:
    net, x = Linear(5), images(8)
    right = net(x).argmax(1)
    work = []
    for y in (right, torch.where(torch.arange(8) < 4, right, (right + 1) % 5)):
        with opened(net, TestImages.of(x, y), Threat("linf", 1e-5), Settings(tell=print)) as e:
            made = forecast(e, plan_of("standard", "linf", 5)[0])
            work.append(made.work if made else None)
    assert work[1] == work[0] / 2
