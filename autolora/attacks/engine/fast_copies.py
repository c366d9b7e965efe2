"""Copies of a network that compute its function faster, for attacks whose successes the network itself looks at again.

Which copy an attack may use depends on what it asks for. Both have the batch norms folded into the convolutions.
"""

from __future__ import annotations

import copy
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from autolora.attacks.engine.onnx_network import Answers, InOnnxruntime
from autolora.attacks.engine.prepare import operations
from autolora.backbones.fold_batchnorm import Folded, has_bfloat16
from autolora.common.errors import BadArgument

T = TypeVar("T")
WIDE = 6e6  # operations of a forward: below, casting to bfloat16 and back costs a CPU more than it saves


class Copies(NamedTuple, Generic[T]):
    half: T  # up to bfloat16, where that is faster
    full: T  # up to float32's rounding


def quick_copies(model: Answers, example: Tensor) -> Copies[Answers]:
    view = folded_copy(model, example)
    full = view if example.device.type != "cpu" else InOnnxruntime(view.model, example, view)

    def half(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return view(x).float()

    pays = example.device.type != "cpu" or operations(view.model, example[:1]) >= WIDE
    return Copies(half if pays and has_bfloat16(example.device) else full, full)


class ChannelsLast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.contiguous(memory_format=torch.channels_last))


def folded_copy(model: Answers, example: Tensor) -> ChannelsLast:
    if not isinstance(model, nn.Module):
        raise BadArgument("precision", "mixed", "that needs a torch module, whose batch norms can be folded")
    try:
        return ChannelsLast(copy.deepcopy(Folded(model, example).view))  # of its own memory, whose layout may change
    except Exception as error:  # parametrised weights, traced modules: what torch cannot copy or look into
        raise BadArgument("precision", "mixed", f"the network cannot be copied and folded ({error})") from error
