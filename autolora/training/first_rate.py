"""The first learning rate, from the length of the features that the head is given.

    rate = 1 / E |f(x)|^2

A step of SGD moves the logits of an image by rate * |f|^2 times its error: the power of its input is what a linear
layer's step is divided by (normalised least mean squares, Nagumo & Noda 1967). Networks differ tenfold in it, by how
they normalise and pool. The gradients of the layers below come through the head, and differ with it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from autolora.backbones.features import features, features_seen
from autolora.backbones.frozen import frozen
from autolora.backbones.layers import head_name

IMAGES = 512  # evenly from the training part
LOWEST, HIGHEST = 0.003, 0.1  # a network unlike all that were tried gets no rate beyond theirs


def first_rate(power: float) -> float:
    """Three digits, so that the order in which a sum was added decides nothing."""
    return float(f"{min(HIGHEST, max(LOWEST, 1 / max(power, 1e-6))):.3g}")


def some_of(count: int, most: int = IMAGES) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count)).long()


@torch.no_grad()
def feature_power(model: nn.Module, batches: Iterable[Tensor]) -> float:
    """E |f(x)|^2 of what the head is given, the network at rest."""
    channels = 1 if isinstance(model.get_submodule(head_name(model)), nn.Conv2d) else -1
    lengths: list[Tensor] = []
    with frozen(model), features_seen(model) as seen:
        for x in batches:
            lengths.append(features(model, seen, x).double().square().sum(channels).flatten())
    return float(torch.cat(lengths).mean())
