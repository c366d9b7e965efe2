"""Adversarial weight perturbation (Wu, Xia & Wang, 2020): each step is taken against weights moved to raise the loss.

    v_l = gamma * |w_l| * g_l / |g_l|     g = grad_w L(w),  l: each convolution and linear layer, the head too
    w  <- w - rate * grad_w L(w + v)

The branch is left out of v: it sees natural images alone. A gamma of 0 is the plain method, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autolora.common import distributed

WAITS = 20  # the first epochs / WAITS are plain: early learning is slowed by it


def weights_of_layers(model: nn.Module) -> dict[str, Tensor]:
    """Of convolutions and linear layers, by the name under which a call replaces them: one that layers share once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    weights = [p for _, layer in _layers(model) for n, p in layer.named_parameters(recurse=False) if n == "weight"]
    return {names[id(weight)]: weight for weight in weights}


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight for name, weight in weights_of_layers(model).items() if weight.requires_grad}


def computed_layers(model: nn.Module) -> list[str]:
    """Those whose weight is made of others in each call (weight norm, spectral norm): nothing can move or keep it."""
    own = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    return [name for name, _ in _layers(model) if f"{name}.weight".lstrip(".") not in own]


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]


def worst_direction(total: Tensor, weights: Mapping[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """v, from this process' part of the loss; the same in every process."""
    found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(weights, found) if gradient is not None}
    distributed.add(gradients.values())  # before any norm
    least = {n: torch.finfo(g.dtype).tiny for n, g in gradients.items()}  # of a layer without any slope
    return {n: gamma * weights[n].detach().norm() * g / g.norm().clamp_min(least[n]) for n, g in gradients.items()}
