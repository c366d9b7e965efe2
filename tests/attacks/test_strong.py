"""What `strong` adds: MALT's targets and the probability margin, each against a slow way of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from autolora import Threat, autoattack
from autolora.attacks.apgd import probability_margin
from autolora.attacks.engine.network import Network
from autolora.attacks.engine.prepare import likely
from autolora.attacks.malt import distances, nearest_first
from autolora.attacks.versions import Budget
from tests.attacks.nets import Linear, images, most_harm, smooth


def order_by_differences(net, image: Tensor, label: int, norm: str) -> list[int]:
    """Nearest class first: slopes by central differences, pixel by pixel in float64, and sums in loops."""
    net, flat, step = net.double(), image.double().flatten(), 1e-5

    def z(point: Tensor) -> Tensor:
        return net(point.view(1, *image.shape))[0]

    slopes = []
    for i in range(len(flat)):
        up, down = flat.clone(), flat.clone()
        up[i], down[i] = up[i] + step, down[i] - step
        slopes.append(((z(up) - z(down)) / (2 * step)).tolist())
    here, reach = z(flat).tolist(), {}
    for other in (k for k in range(len(here)) if k != label):
        w = [row[label] - row[other] for row in slopes]
        steep = {"linf": sum(map(abs, w)), "l2": math.sqrt(sum(v * v for v in w)), "l1": max(map(abs, w))}[norm]
        reach[other] = (here[label] - here[other]) / steep
    return sorted(reach, key=reach.__getitem__)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_targets_are_those_of_finite_differences(norm: str) -> None:
    net, x = smooth(6), images(7)
    z = net(x)
    y = z.argmax(1)
    y[3] = (y[3] + 1) % 6  # one that is wrong as it is
    found = nearest_first(Network(net, 4), x, y, likely(z, y), norm)
    assert found.tolist() == [order_by_differences(smooth(6), image, int(label), norm) for image, label in zip(x, y)]
    assert not torch.equal(found, likely(z, y))  # another order than that of the logits


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_are_exact_on_a_linear_network(norm: str) -> None:
    """At its distance, and far from the box, the best perturbation closes the gap to the class."""
    net, x = Linear(4), images(3).mul(0.2).add(0.4)
    y = net(x).argmax(1)
    classes = likely(net(x), y)
    far = distances(Network(net, 2), x[:2], y[:2], classes[:2], norm=norm)
    w, b = net.weight.detach().double(), net.bias.detach().double()
    for i, j in ((0, 0), (0, 2), (1, 1)):
        v, label, other = w[y[i]] - w[classes[i, j]], y[i], classes[i, j]
        gap = float(v @ x[i].double().flatten() + b[label] - b[other])
        harm = most_harm(v.numpy(), x[i].double().flatten().numpy() * 0 + 0.5, norm, float(far[i, j]))
        assert harm == pytest.approx(gap, rel=1e-3)


def test_a_class_without_a_slope_comes_last() -> None:
    """Class 0 is nearer by its logit, and no pixel leads there."""
    still = torch.tensor([3.9, 0.0, 4.0])

    def net(x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1)
        return torch.stack([0 * total, 0.01 * total, 0 * total], 1) + still

    classes, y = torch.tensor([[0, 1]]), torch.tensor([2])
    assert distances(Network(net, 1), images(1), y, classes, norm="l2").isinf().tolist() == [[True, False]]
    assert nearest_first(Network(net, 1), images(1), y, classes, "l2").tolist() == [[1, 0]]


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probability_margin(classes: int) -> None:
    """By hand: exponentials over their sum, in Python's own floats."""
    z = torch.randn(5, classes, generator=torch.Generator().manual_seed(0)) * 4
    y = torch.arange(5) % classes
    expected = []
    for row, label in zip(z.tolist(), y.tolist()):
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        expected.append(max(v for k, v in enumerate(p) if k != label) - p[label])
    assert probability_margin(z, y, y).tolist() == pytest.approx(expected, abs=1e-6)


def test_strong_ends_below_standard_and_never_above() -> None:
    """What standard leaves standing is what is attacked further, by the same draws until there."""
    net, x = smooth(6), images(16)
    y, threat = net(x).argmax(1), Threat("linf", 0.05)
    how = {"budget": Budget(steps=5, queries=20), "batch_size": 8, "show": False}
    standard, strong = (autoattack(net, x, y, threat, version=v, **how) for v in ("standard", "strong"))
    assert [(a.name, a.broken) for a in strong.attacks[:4]] == [(a.name, a.broken) for a in standard.attacks]
    assert [a.name for a in strong.attacks[4:]] == ["apgd-malt", "apgd-pm"]
    assert not (strong.robust & ~standard.robust).any()
    assert torch.equal(strong.adversarial[standard.found], standard.adversarial[standard.found])
    assert 0 < strong.robust.sum() < 16


def test_targets_are_asked_for_the_images_that_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for these alone: 2 F for each class ranked. An attack that is known already asks for none."""
    import autolora.attacks.evaluation as evaluation

    asked: list[int] = []

    def counted(network: Network, x: Tensor, y: Tensor, classes: Tensor, norm: str) -> Tensor:
        asked.append(len(x))
        return nearest_first(network, x, y, classes, norm)

    monkeypatch.setattr(evaluation, "nearest_first", counted)
    net, x = smooth(6), images(12)
    how = {"budget": Budget(steps=4, queries=10), "batch_size": 6, "show": False, "version": "strong"}
    report = autoattack(net, x, net(x).argmax(1), Threat("l2", 0.25), **how)
    left = 12 - sum(a.broken for a in report.attacks[:4])
    assert asked == [left]
    assert 0 < left < 12
