"""The networks that are timed: in the memory format of training, and as they were afterwards."""

import pytest
import torch
from torch import nn

from autolora.backbones.classifier import Classifier, Spec
from stages.estimate import clock
from tests.method.small import Small


def small(stem: int) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Small(stem=stem), Spec("own", 3, 8))


@pytest.mark.parametrize(("stem", "layout"), [(8, torch.channels_last), (4, torch.contiguous_format)])
def test_a_training_step_is_timed_in_the_format_that_training_has(monkeypatch, stem, layout):
    """A narrow shortcut in channels last would end the process (autolora/training/speed.py)."""
    steps: list[bool] = []
    monkeypatch.setattr(clock, "SECONDS", 0.01)
    step = clock._step

    def watched(model: nn.Module, x: torch.Tensor) -> None:
        steps.append(x.is_contiguous(memory_format=layout) and weight(model).is_contiguous(memory_format=layout))
        step(model, x)

    def weight(model: nn.Module) -> torch.Tensor:
        return next(m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))

    monkeypatch.setattr(clock, "_step", watched)
    model = small(stem)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clock.price_of(model, 16)
    assert steps
    assert all(steps)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
