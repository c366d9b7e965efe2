"""Copies of a network that compute its function faster, for attacks whose successes the network itself looks at again.

Which copy an attack may use depends on what it asks for. All have the batch norms folded into the convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

import onnxruntime
import torch
from torch import Tensor, nn

from autolora.attacks.network import from_session
from autolora.attacks.workers import of_the_first, worker
from autolora.conversion import ExportError, checked, converted, traced
from autolora.folding import Folded, has_bfloat16
from autolora.runtime import BadModel, open_session

Answers = Callable[[Tensor], Tensor]
T = TypeVar("T")


class Copies(NamedTuple, Generic[T]):
    half: T  # up to bfloat16, where the processor has it
    full: T  # up to float32's rounding
    scores: T  # the same, without gradients


def quick_copies(model: Answers, example: Tensor) -> Copies[Answers]:
    """torch's have their channels last."""
    if not isinstance(model, nn.Module):
        raise ValueError("evaluate.precision is 'fast': that needs a torch module, whose batch norms can be folded")
    try:
        view = copy.deepcopy(Folded(model, example).view)  # of its own memory, whose layout may change
    except Exception as error:  # parametrised weights, traced modules: what torch cannot copy or look into
        raise ValueError(f"evaluate.precision is 'fast': the network cannot be copied and folded ({error})") from error
    view.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def full(x: Tensor) -> Tensor:
        return view(x.contiguous(memory_format=torch.channels_last))

    def half(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return full(x).float()

    device, (c, h, w) = example.device, example.shape[1:]
    scores = full if device.type != "cpu" else InOnnxruntime(view, (c, h, w), full)
    return Copies(half if has_bfloat16(device) else full, full, scores)


class InOnnxruntime:
    """The network as onnxruntime runs it: on a CPU up to 1.5 times as fast, since a convolution takes its activation
    with it and finds its weights packed. It is converted (seconds) when it is first asked; `otherwise` answers where
    it has no ONNX form."""

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], otherwise: Answers) -> None:
        self.model, self.shape, self.otherwise = model, shape, otherwise

    def __call__(self, x: Tensor) -> Tensor:
        return self.answers(x)

    @cached_property
    def answers(self) -> Answers:
        """To be asked for by all processes at once: the first one converts, which takes memory, for all."""
        content = of_the_first(self._converted() if worker() == 0 else None)
        if content is None:
            return self.otherwise
        return from_session(open_session(content, threads=torch.get_num_threads()))

    def _converted(self) -> bytes | None:
        for way in (traced, converted):
            with suppress(ExportError, BadModel):
                return checked(way(self.model, self.shape), self.model, self.shape)
        return None

    @property
    def version(self) -> str:
        """Of onnxruntime, where it answers."""
        return "" if self.answers is self.otherwise else onnxruntime.__version__
