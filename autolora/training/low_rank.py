"""Training only a low-rank change of each layer: W = W0 + BA / r, with W0 as pre-trained (`trains: lora`).

torch's parametrizations replace the weight itself, so attack, validation and the objective all see W; at the end it is
folded into one dense weight. What else is trained: the affine parameters of norms, and the head.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import RmsNorm, RmsNorm2d, RmsNorm2dFp32, RmsNormFp32
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from autolora.common.errors import BadArgument
from autolora.training.axes import RANK
from autolora.training.branch import Layers, change, factor_shapes

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm, RmsNorm2d, RmsNormFp32, RmsNorm2dFp32)


class LowRank(nn.Module):
    def __init__(self, layer: nn.Conv2d | nn.Linear, generator: torch.Generator, rank: int = RANK) -> None:
        super().__init__()
        a, b = factor_shapes(layer, rank)
        self.rank = rank
        self.A = nn.Parameter(torch.randn(a, generator=generator).to(layer.weight))
        self.B = nn.Parameter(layer.weight.new_zeros(b))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + change(self.A, self.B, weight.shape, self.rank)


def with_low_rank(
    model: nn.Module, layers: Layers, head: set[str], generator: torch.Generator, rank: int = RANK
) -> None:
    """In place: these layers get a low-rank change, and all else but norms and head is frozen."""
    check_low_rank(layers)
    trained = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, NORMS) for p, _ in m.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head or name in trained)
    for _, layer in layers:
        low_rank, weight = LowRank(layer, generator, rank), layer.weight
        for module in [m for m in model.modules() if getattr(m, "weight", None) is weight]:  # all that share it
            parametrize.register_parametrization(module, "weight", low_rank)


def check_low_rank(layers: Layers) -> None:
    if not layers:
        raise BadArgument("trains", "lora", "the network has no convolution or linear layer between stem and head")


def dense(model: nn.Module) -> nn.Module:
    """In place: W0 + BA / r as one weight, under the name that it had. Whose weights are computed otherwise stay so:
    to remove that would take the weight from the caller's own network, too, of whose class the copy is."""
    layers = [module for module in model.modules() if _is_low_rank(module)]
    changed = [cast(Tensor, layer.weight).detach().clone() for layer in layers]  # before one that is shared changes
    for layer, weight in zip(layers, changed):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        cast(Tensor, layer.weight).data.copy_(weight)
    return model


def _is_low_rank(module: nn.Module) -> bool:
    computed: Any = getattr(module, "parametrizations", {})
    return "weight" in computed and isinstance(computed["weight"][0], LowRank)
