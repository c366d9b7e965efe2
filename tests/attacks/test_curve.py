"""The curve of accuracy against the radius: exact where the answer is known, for every norm."""

from __future__ import annotations

import pytest
import torch

from autolora import Threat
from autolora.attacks.eps_curve import eps_curve
from tests.attacks.nets import Linear, images, stands


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.02), ("l2", 0.15), ("l1", 0.6)])
def test_the_curve_of_a_linear_network(norm: str, eps: float) -> None:
    """Never below what stands exactly, hardly above it, and falling to nothing where every image reaches grey."""
    net, x = Linear(3), images(40)
    y = net(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3  # wrong when clean
    curve = eps_curve(net, x, y, Threat(norm, eps), batch_size=8)
    assert (curve[0].eps, curve[0].accuracy) == (0.0, 0.9)
    assert len(curve) > 4
    assert [p.eps for p in curve] == sorted(p.eps for p in curve)
    for point in curve[1:-1]:
        exact = (stands(net, x, y, norm, point.eps) & (torch.arange(40) >= 4)).double().mean().item()
        assert exact <= point.accuracy <= exact + 0.1
    assert curve[-1].accuracy == 0
