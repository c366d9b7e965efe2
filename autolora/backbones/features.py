"""What the head of a network is given, whatever the network's forward looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from autolora.backbones.layers import head_name


@contextmanager
def features_seen(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that gets the head's input in each forward inside; gradients go through it."""
    seen: list[Tensor] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    hook = model.get_submodule(head_name(model)).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
