"""The fold against a network with two real branches, and the dial: where it stands, what moves it, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.threat import Threat
from autolora.training.branch import Branch, add_branch
from autolora.training.dial import SIGNIFICANT, Point, choose, interpolate, judge
from tests.export.nets import EveryLayer, tiny
from tests.method.small import Tied


def beside(layer: nn.Module, A: Tensor, B: Tensor, rank: int, alpha: float):
    """A second branch that runs beside the layer and is added to its output; its kernel is built element by element."""
    kernel = np.einsum("ok,ki->oi", B.double().numpy(), A.double().numpy()).reshape(layer.weight.shape)
    kernel = torch.from_numpy(alpha / rank * kernel).float()

    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            return output + F.linear(inputs[0], kernel)
        return output + F.conv2d(inputs[0], kernel, None, module.stride, module.padding, module.dilation, module.groups)

    return layer.register_forward_hook(add)


@pytest.fixture
def branched() -> tuple[EveryLayer, Branch]:
    torch.manual_seed(0)
    model = EveryLayer().eval()
    branch = Branch([(f"layers.{name}", layer) for name, layer in model.layers.items()], rank=4)
    for B in branch.B:
        nn.init.normal_(B, std=0.5)
    return model, branch


@pytest.mark.parametrize("only", [None, *EveryLayer().layers])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_merged_is_the_two_branch_network(branched, alpha: float, only: str | None) -> None:
    model, branch = branched
    x = torch.rand(5, 3, 16, 16)
    deltas = {n: d.detach() for n, d in branch.deltas().items() if only is None or n == f"layers.{only}.weight"}
    merged = add_branch(model, deltas, alpha)
    plain = model(x)
    for name, A, B in zip(branch.names, branch.A, branch.B):
        if only is None or name == f"layers.{only}":
            beside(model.get_submodule(name), A.detach(), B.detach(), 4, alpha)
    expected = model(x)
    error = (merged(x) - expected).abs().max()
    assert error < 1e-5 * expected.abs().max()
    assert (expected - plain).abs().max() > 100 * error  # and the branch does something


def test_alpha_zero_is_the_robust_network_to_the_bit(branched) -> None:
    model, branch = branched
    merged = add_branch(model, branch.deltas(), 0.0)
    for name, value in model.state_dict().items():
        assert torch.equal(merged.state_dict()[name], value)


def test_interpolation_moves_weights_and_running_statistics() -> None:
    robust, natural = tiny(0), tiny(1)
    mixed = interpolate(robust, natural, 0.25).state_dict()
    for name, value in mixed.items():
        a, b = robust.state_dict()[name], natural.state_dict()[name]
        expected = 0.75 * a + 0.25 * b if value.is_floating_point() else a
        assert torch.allclose(value, expected, atol=1e-6), name
    assert not torch.equal(mixed["body.norm.running_mean"], robust.state_dict()["body.norm.running_mean"])


def test_a_weight_that_two_layers_share_is_interpolated_once() -> None:
    robust, natural = Tied(), Tied()
    for value in natural.parameters():
        nn.init.normal_(value)
    mixed = interpolate(robust, natural, 0.5)
    for name, value in robust.named_parameters():
        expected = (value + natural.get_parameter(name)) / 2
        assert torch.allclose(mixed.get_parameter(name), expected, atol=1e-6), name


def test_judge_counts_only_images_that_are_right_before_the_attack() -> None:
    model = tiny(3)
    x = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    y = model(x.float() / 255).argmax(1)
    y[:10] = (y[:10] + 1) % 10
    clean, robust = judge(model, x, y, Threat("linf", 1e-7), batch=16)
    assert clean.tolist() == [False] * 10 + [True] * 30
    assert (robust <= clean).all()
    assert robust.sum() >= 29  # a radius of nothing breaks nothing but ties
    assert not judge(model, x, y, Threat("linf", 1.0), batch=16)[1].all()


def test_judge_attacks_from_the_images_themselves() -> None:
    """Without a draw: a point of the curve is the same whenever it is asked for."""
    model, seen = tiny(3), list[Tensor]()
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    x = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    judge(model, x, torch.arange(8), Threat("linf", "8/255"))
    assert torch.equal(seen[0], x / 255)


def point(alpha: float, clean: list[int], robust: list[int], n: int = 400) -> Point:
    """Right on the images from..to of n."""
    flags = [np.isin(np.arange(n), np.arange(*span)) for span in (clean, robust)]
    return Point("branch", alpha, *flags)


@pytest.mark.parametrize(
    ("other", "moves"),
    [
        (point(1, [0, 320], [0, 200]), True),  # 20 images more, none lost: p = 2e-6
        (point(1, [0, 320], [0, 198]), True),  # at 0.5 points of robust accuracy
        (point(1, [0, 320], [0, 197]), False),  # at 0.75 points
        (point(1, [0, 304], [0, 200]), False),  # four more: p = 0.125
        (point(1, [0, 303], [0, 208]), True),  # both rise, by three and eight: p = 0.001
        (point(1, [0, 302], [0, 201]), False),  # by two and one: p = 0.25
        (point(1, [0, 302], [0, 200]), False),
        (point(1, [80, 385], [0, 200]), False),  # 85 won, 80 lost
        (point(1, [0, 300], [0, 230]), False),  # as accurate: only one of the two rises
        (point(1, [0, 280], [0, 260]), False),  # more robust and less accurate is not what the dial is for
    ],
)
def test_auto_moves_only_where_it_is_earned(other: Point, moves: bool) -> None:
    chosen, why = choose([point(0, [0, 300], [0, 200]), other])
    assert (chosen.alpha == 1) is moves
    assert why


def by_chance(seed: int, gain: float = 0, noisy: bool = True) -> list[Point]:
    """Four alphas that change the answer to every second image by chance, plus a true gain in clean accuracy.

    Whether an image stands is as it was, or (`noisy`) changed by chance as well: then both accuracies may rise.
    """
    rng = np.random.default_rng(seed)
    clean, stands = rng.random(400) < 0.5, rng.random(400) < 0.5
    points = [Point("branch", 0, clean, clean & stands if noisy else stands)]
    for alpha in (0.25, 0.5, 0.75, 1):
        now = np.where(rng.random(400) < 0.5, rng.random(400) < 0.5 + gain, clean)
        robust = now & np.where(rng.random(400) < 0.5, rng.random(400) < 0.5, stands) if noisy else stands
        points.append(Point("branch", alpha, now, robust))
    return points


def moves(seeds: int, **planted: Any) -> float:
    """The share of seeds in which `auto` leaves 0."""
    return sum(choose(by_chance(seed, **planted))[0].alpha > 0 for seed in range(seeds)) / seeds


def test_four_chances_are_not_four_times_the_false_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    level = SIGNIFICANT / 2  # a two-sided test, of which only the gains move the dial
    assert moves(500, noisy=False) <= level
    assert moves(100, noisy=False, gain=0.3) > 0.9
    monkeypatch.setattr("autolora.training.dial.holm", list)  # without the correction: this test would see it
    assert moves(500, noisy=False) > 2 * level


def test_two_small_rises_are_chance() -> None:
    """By chance alone one of four alphas has both accuracies higher in most cases: that needs a test as well."""
    assert moves(500) <= SIGNIFICANT
    assert moves(100, gain=0.3) > 0.9
    risen = 0
    for seed in range(100):
        start, *others = by_chance(seed)
        risen += any(np.greater(point.accuracies, start.accuracies).all() for point in others)
    assert risen > 50


def test_auto_takes_the_most_accurate_of_those_that_earn_it() -> None:
    points = [point(0, [0, 300], [0, 200]), point(0.5, [0, 340], [0, 200]), point(1, [0, 320], [0, 200])]
    assert choose(points)[0].alpha == 0.5


def test_of_equal_settings_of_the_dial_the_one_nearer_to_the_robust_network():
    n = np.arange(1000)
    start, better = n < 800, n < 850
    points = [Point("natural", alpha, better if alpha else start, n < 500) for alpha in (0.0, 0.25, 0.5)]
    assert choose(points)[0].alpha == 0.25


def test_of_equally_accurate_settings_the_more_robust_one():
    points = [point(0, [0, 300], [0, 200]), point(0.25, [0, 340], [0, 200]), point(0.5, [0, 340], [0, 210])]
    assert choose(points)[0].alpha == 0.5
