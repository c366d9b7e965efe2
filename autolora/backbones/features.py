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


def features(model: nn.Module, seen: list[Tensor], x: Tensor) -> Tensor:
    """What the head is given of these images, inside `features_seen`."""
    seen.clear()
    model(x)
    if not seen:
        way = 'without them there is reference="paper", or a rate of your own with eps_schedule="constant"'
        raise ValueError(f"the head, {head_name(model)!r}, is not called as a layer: its features are unknown; {way}")
    return seen[0]
