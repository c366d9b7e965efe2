"""Who teaches in distillation (`method: distill`): a robust network, or that and a natural one.

    robust     a classifier file, or `first_pass`: the same run with AutoLoRa's loss first, which costs as much again
    natural    a classifier file, or `twin`: the same network tuned without an attack

What such runs are is said in phases.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autolora.backbones.classifier import load_classifier
from autolora.common.errors import BadArgument, first_line
from autolora.data.batches import StoredImages
from autolora.training.axes import FIRST_PASS, TWIN
from autolora.training.settings import Settings, Split, count_classes
from autolora.training.speed import contiguous_alone

SPEED = 0.025  # of the balance, at the first learning rate
SMALLEST = 1e-12  # what a first divergence counts at least


@dataclass(frozen=True)
class Teachers:
    """At rest, in eval."""

    robust: nn.Module
    natural: nn.Module | None = None

    def networks(self) -> Iterator[nn.Module]:
        return (network for network in (self.robust, self.natural) if network is not None)

    def place(
        self, images: StoredImages, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
    ) -> dict[nn.Module, torch.memory_format]:
        """Beside the student. In its memory format, but where one views its features as rows: which they are in."""
        layouts = {}
        for network in self.networks():
            own = torch.contiguous_format if contiguous_alone(network, images) else layout
            layouts[network] = own
            network.to(device, dtype, memory_format=own)  # type: ignore[call-overload]
        return layouts


def from_files(settings: Settings, model: nn.Module, val: Split) -> dict[str, nn.Module]:
    """The teachers that are files, by key; refused where they do not know the network's classes."""
    asked = {"teacher": settings.teacher, "natural_teacher": settings.natural_teacher}
    return {
        key: _read(key, path, count_classes(model, val[0]), val)
        for key, path in asked.items()
        if path not in (None, FIRST_PASS, TWIN)
    }


def _read(key: str, path: str | None, classes: int, val: Split) -> nn.Module:
    assert path is not None
    try:
        network = load_classifier(path)
        found = count_classes(network, val[0])
    except ValueError as error:
        raise BadArgument(key, path, first_line(error)) from None
    if found != classes:
        raise BadArgument(key, path, f"it knows {found} classes, and the network that learns {classes}")
    return network


@dataclass
class Balance:
    """MTARD (Zhao et al., 2022): the teacher that less was learnt from since the first batch gets more of the loss."""

    natural: float = 0.5  # the natural teacher's share
    first: tuple[float, float] | None = None  # divergences in the first batch, adversarial and natural

    def observe(self, adversarial: float, natural: float, speed: float) -> None:
        """After a step, with the divergences of the global batch."""
        if self.first is None:
            self.first = max(adversarial, SMALLEST), max(natural, SMALLEST)
        left, left_natural = adversarial / self.first[0], natural / self.first[1]
        if left + left_natural > 0:
            self.natural -= speed * (self.natural - left_natural / (left + left_natural))

    def state(self) -> dict[str, Any]:
        return {"natural": self.natural, "first": self.first}
