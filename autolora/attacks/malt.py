"""Targets by mesoscopic almost linearity (MALT; Melamed, Yehudai & Shamir, 2024): classes with near boundaries first.

If the network were linear around the image x, class t would be reached at the distance

    d_t = (z_y - z_t) / ||grad z_y - grad z_t||_*            (* is the dual norm: L1 for Linf, L2 for L2, Linf for L1)

The targeted attacks of AutoAttack take the classes with the largest z_t; here the nearest ones come first. Only the
hundred most likely classes are ranked, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autolora.attacks.engine.network import Network, lengths

MOST = 100  # classes that are ranked
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


def nearest_first(network: Network, x: Tensor, y: Tensor, classes: Tensor, norm: str) -> Tensor:
    """These wrong classes of each image [n,c], in the order of their distance; equal ones stay as they were."""
    parts = zip(*(t.split(network.batch) for t in (x, y, classes)), strict=True)
    far = torch.cat([distances(network, *part, norm=norm) for part in parts])
    return classes.gather(1, far.argsort(dim=1, stable=True))


def distances(network: Network, x: Tensor, y: Tensor, classes: Tensor, *, norm: str) -> Tensor:
    """Of each class [n,c]; infinite where no pixel leads towards it."""
    return torch.stack([_distance(network, x, torch.stack([target, y], 1), norm) for target in classes.T], 1)


def _distance(network: Network, x: Tensor, pair: Tensor, norm: str) -> Tensor:
    _, gap, slope = network.gradient(x, lambda z, rows: z.gather(1, pair[rows]).diff(dim=1).squeeze(1))
    steep = lengths(slope, DUAL[norm])
    return torch.where(steep > 0, gap / steep, torch.inf)
