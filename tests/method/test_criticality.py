"""RiFT: what a layer is worth to robustness, against gradients and random changes; the tuning moves one tensor."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.threat import Threat
from autolora.training import criticality
from autolora.training.criticality import Tuning, attacked, critical, evenly, measured, tune, worst_change
from autolora.training.dial import interpolate
from tests.export.nets import tiny

THREAT = Threat("linf", "8/255")
LAYERS = ["body.stem", "body.block.0", "body.fc"]


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(24, 3, 8, 8, generator=draw), torch.arange(24) % 10


@pytest.fixture
def stored() -> tuple[Tensor, Tensor]:
    """uint8, a little larger than the network sees them."""
    draw = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (40, 3, 10, 10), dtype=torch.uint8, generator=draw), torch.arange(40) % 10


def loss_with(model: nn.Module, layer: str, change: Tensor, images: tuple[Tensor, Tensor]) -> Tensor:
    """In one batch, of a copy whose weight was changed in place."""
    other = copy.deepcopy(model).eval()
    with torch.no_grad():
        other.get_parameter(f"{layer}.weight").add_(change)
    return F.cross_entropy(other(images[0]), images[1])


@pytest.mark.parametrize("layer", LAYERS)
def test_the_change_lies_in_the_ball_and_raises_the_loss_by_what_is_said(images, layer: str, monkeypatch) -> None:
    monkeypatch.setattr(criticality, "BATCH", 7)  # which does not divide 24
    model = tiny(0)
    change, rise = worst_change(model, layer, *images, radius=0.1)
    weight = model.get_parameter(f"{layer}.weight")
    assert 0.09 * weight.norm() < change.norm() <= 0.1 * weight.norm() * (1 + 1e-6)
    start, now = loss_with(model, layer, torch.zeros_like(change), images), loss_with(model, layer, change, images)
    assert rise == pytest.approx((now - start).item(), rel=1e-3)
    draw = torch.Generator().manual_seed(2)
    for _ in range(30):
        other = torch.randn(change.shape, generator=draw)
        assert loss_with(model, layer, other * change.norm() / other.norm(), images) < now


@pytest.mark.parametrize("layer", LAYERS)
def test_in_a_small_ball_it_is_the_length_of_the_gradient(images, layer: str) -> None:
    model, (x, y) = tiny(0).double(), (images[0].double(), images[1])
    weight = model.get_parameter(f"{layer}.weight").requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), weight)
    rise = worst_change(model, layer, x, y, radius=1e-6)[1]
    assert rise == pytest.approx((1e-6 * weight.norm() * gradient.norm()).item(), rel=1e-4)
    assert worst_change(model, layer, x, y, radius=0)[1] == 0


def test_a_layers_scale_does_not_matter_before_a_batch_norm(images) -> None:
    model = tiny(0)
    model.body.block[1].eps = 0.0
    before = worst_change(model, "body.block.0", *images)[1]
    with torch.no_grad():
        model.body.block[0].weight.mul_(3)
        model.body.block[1].running_mean.mul_(3)
        model.body.block[1].running_var.mul_(9)
    assert worst_change(model, "body.block.0", *images)[1] == pytest.approx(before, rel=1e-3)


def test_a_layer_that_nothing_hears_is_the_least_critical_one(stored) -> None:
    model = tiny(0)
    with torch.no_grad():
        model.body.block[1].weight.zero_()
        model.body.block[1].bias.fill_(-1)
    found = critical(model, stored, THREAT, size=8)
    assert found.layer == "body.block.0"
    assert found.found["body.block.0"] == 0 < min(found.found["body.stem"], found.found["body.fc"])


def test_images_are_attacked_within_the_threat_and_nothing_moves(images) -> None:
    model = tiny(0).train()
    before = copy.deepcopy(model.state_dict())
    adversarial = attacked(model, *images, THREAT)
    assert 0 < (adversarial - images[0]).abs().max() <= THREAT.eps + 1e-6
    found = measured(model, images, THREAT)
    assert list(found) == LAYERS
    assert found["body.fc"] == worst_change(model, "body.fc", adversarial, images[1])[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_larger_stored_images_are_measured_in_their_middle(stored, monkeypatch) -> None:
    monkeypatch.setattr(criticality, "tune", lambda model, *_: model)
    found = critical(tiny(0), stored, THREAT, size=8).found
    expected = measured(tiny(0), (stored[0][..., 1:9, 1:9] / 255, stored[1]), THREAT)
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_weight_of_zeros_has_no_ball_and_is_not_chosen(images) -> None:
    model = tiny(0)
    nn.init.zeros_(model.body.block[0].weight)
    assert list(measured(model, images, THREAT)) == ["body.stem", "body.fc"]


@pytest.fixture
def short(monkeypatch) -> Tuning:
    for name, value in {"EPOCHS": 4, "LEAST_STEPS": 0, "BATCH": 16, "RATE": 0.01}.items():
        monkeypatch.setattr(criticality, name, value)
    return Tuning("body.block.0", size=8, seed=3, augmented="crop_flip")


def test_one_tensor_is_tuned_and_the_dial_moves_it(stored, short: Tuning) -> None:
    model = tiny(0)
    tuned = tune(model, stored, short)
    ends = [m.state_dict() for m in (model, tuned)]
    changed = [name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])]
    assert changed == ["body.block.0.weight"]
    for alpha, expected in ((0.0, ends[0]), (1.0, ends[1])):
        assert all(torch.equal(v, expected[n]) for n, v in interpolate(model, tuned, alpha).state_dict().items())
    x, y = stored[0][..., 1:9, 1:9] / 255, stored[1]
    assert F.cross_entropy(tuned(x), y) < F.cross_entropy(model(x), y)
    other = tune(model, stored, short._replace(seed=4)).state_dict()
    assert not torch.equal(other["body.block.0.weight"], ends[1]["body.block.0.weight"])


@pytest.mark.parametrize(("least", "whole", "tenth"), [(0, 2, 2), (15, 2, 3)])
def test_the_second_half_has_a_tenth_of_the_rate_and_small_sets_more_epochs(
    stored, short: Tuning, monkeypatch, least: int, whole: int, tenth: int
) -> None:
    """Four epochs of three batches, or as many as 15 steps need."""
    rates, step = [], torch.optim.SGD.step
    monkeypatch.setattr(criticality, "LEAST_STEPS", least)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda o, *a: rates.append(o.param_groups[0]["lr"]) or step(o, *a))
    tune(tiny(0), stored, short)
    assert rates == pytest.approx([0.01] * 3 * whole + [0.001] * 3 * tenth)


def test_each_epoch_has_an_order_of_its_own(stored, short: Tuning) -> None:
    orders = [torch.cat([y for _, y in criticality._batches(stored, short, e, torch.device("cpu"))]) for e in (1, 2)]
    assert torch.equal(orders[0].sort().values, orders[1].sort().values)
    assert not torch.equal(*orders)


def test_killed_it_ends_with_the_same_bits(stored, short: Tuning, tmp_path: Path, monkeypatch) -> None:
    whole = critical(tiny(0), stored, THREAT, size=8, seed=3, augmented="crop_flip")
    layers, epochs = [], []
    change, batches = criticality.worst_change, criticality._batches

    def dying(log: list, at: int, work):
        def one(*arguments):
            log.append(arguments)
            if len(log) == at:
                raise KeyboardInterrupt
            return work(*arguments)

        return one

    monkeypatch.setattr(criticality, "worst_change", dying(layers, 2, change))
    monkeypatch.setattr(criticality, "_batches", dying(epochs, 3, batches))
    for _ in range(2):  # in the second layer, then in the third epoch
        with pytest.raises(KeyboardInterrupt):
            critical(tiny(0), stored, THREAT, size=8, seed=3, augmented="crop_flip", folder=tmp_path)
    again = critical(tiny(0), stored, THREAT, size=8, seed=3, augmented="crop_flip", folder=tmp_path)
    assert (len(layers), len(epochs)) == (4, 5)  # one layer and one epoch were begun twice, none was done twice
    assert (again.layer, again.found) == (whole.layer, whole.found)
    ours = again.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in whole.network.state_dict().items())


def test_classes_take_turns() -> None:
    labels = torch.tensor([0] * 20 + [1] * 5 + [2] * 2)
    chosen = evenly(labels, 9, torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == 9
    assert np.bincount(labels[chosen]).tolist() == [4, 3, 2]
    assert not torch.equal(chosen, evenly(labels, 9, torch.Generator().manual_seed(1)))
    assert sorted(evenly(labels, 99, torch.Generator()).tolist()) == list(range(27))
