"""Constants that a file computes from others: no larger than what it holds allows.

    with Bounded(elements_in_the_file):
        ...        # NoRule before memory is taken

A file of some hundred bytes may name a constant of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from autolora.export.operators.shapes import NoRule

FREE, TIMES = 2**28, 16  # numbers: so many, and so many more for each that the file holds


class Bounded(TorchDispatchMode):
    """Each operation is first asked, without memory, how large its answer is."""

    def __init__(self, held: int) -> None:
        super().__init__()
        self.left = FREE + TIMES * held

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = kwargs or {}
        for size, view in _sizes(func, args, given):
            if size > self.left:
                raise NoRule("constants that are far larger than the file")
            self.left -= 0 if view else size  # which takes no memory of its own
        return func(*args, **given)


def _sizes(func: Callable[..., Any], args: tuple, given: dict[str, Any]) -> Iterator[tuple[int, bool]]:
    """What has no such form (it looks at values) makes nothing large."""
    with suppress(Exception):
        there = given | {"device": "meta"} if "device" in given or not _tensors((args, given)) else given
        asked = tree_map(_on_meta, (args, there))
        known = {_memory(t) for t in _tensors(asked)}
        yield from ((t.numel(), _memory(t) in known) for t in _tensors(func(*asked[0], **asked[1])))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
