"""In which precision, memory format and form a run computes: what its settings leave to the machine."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn

from autolora.backbones.fold_batchnorm import has_bfloat16
from autolora.backbones.frozen import frozen
from autolora.data.batches import StoredImages, centre, take, to_pixels
from autolora.training.settings import Settings


class Speed(NamedTuple):
    attack: torch.dtype
    train: torch.dtype
    compile: bool
    layout: torch.memory_format


def speed(settings: Settings, device: torch.device) -> Speed:
    """`auto`: bfloat16 where the processor has it, on a CPU for the attack alone (its sign is what counts); not
    compiled; channels last on every device: a CPU saves a fifth of an epoch by it, tensor cores read convolutions so.
    """
    low, full = torch.bfloat16, torch.float32
    precisions = {"float32": (full, full), "bfloat16": (low, low), "auto": (full, full)}
    if settings.precision == "auto" and has_bfloat16(device):
        precisions["auto"] = (low, low if device.type == "cuda" else full)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return Speed(*precisions[settings.precision], compile=settings.compile not in ("auto", False), layout=layout)


def contiguous_alone(model: nn.Module, images: StoredImages) -> bool:
    """Whether it views its features as rows (`x.view(n, -1)`, as an ordinary LeNet does), which lie otherwise in
    channels last."""
    parameter, trial = next(model.parameters()), copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = to_pixels(take(images, torch.arange(2) % len(images), parameter.device)).to(parameter.dtype)
    try:
        with torch.no_grad(), frozen(trial):
            trial(centre(x, images.shape[-1]).to(memory_format=torch.channels_last))
    except RuntimeError as error:
        return "view" in str(error)
    return False


def crashes_in_channels_last(model: nn.Module, device: torch.device, trains: str = "all") -> bool:
    """On a CPU torch 2.13 ends the process in two backward passes: of a group norm that learns from features that do
    not; and, on processors without AVX-512, of a strided 1x1 convolution of few channels, whose weight gradient is
    written beyond its memory (seen with 4 and 6 channels; not with 7 or more).
    """
    modules = list(model.modules())
    norms = trains != "all" and any(isinstance(module, nn.GroupNorm) for module in modules)
    return device.type == "cpu" and (norms or any(_strides_narrowly(module) for module in modules))


def _strides_narrowly(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or module.in_channels >= 8:
        return False
    return set(module.kernel_size) == {1} and set(module.stride) != {1}
