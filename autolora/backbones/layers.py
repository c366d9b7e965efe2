"""What the method needs to know about any network: its head, its stem, and the layers between."""

from __future__ import annotations

from typing import Any

from torch import nn


def head_names(model: nn.Module) -> list[str]:
    """Names of the layers that give the logits: one, or two for distilled transformers (`head`, `head_dist`).

    timm networks say so in their default_cfg (also when wrapped, as in Sequential(normalise, network)); of any other
    module it is the linear layer registered last, or the last 1x1 convolution where it has no linear layer.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    prefix, network = _timm_part(model)
    if network is not None and all(name.startswith(prefix) for name in linear[-1:]):  # else a head was put after it
        named = [f"{prefix}{name}" for name in _as_list(network.default_cfg.get("classifier"))]
        if found := [name for name in named if isinstance(submodule(model, name), nn.Linear | nn.Conv2d)]:
            return found
    pointwise = [name for name, layer in _layers(model) if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    if not linear and not pointwise:
        raise ValueError(f"{type(model).__name__} has no linear head: expected a torch.nn.Linear that gives the logits")
    return (linear or pointwise)[-1:]


def head_name(model: nn.Module) -> str:
    """The layer that gives the logits (the first, where there are two)."""
    return head_names(model)[0]


def stem_names(model: nn.Module) -> list[str]:
    """Names of the layers that turn pixels into the first features (patch embedding, deep stem); none for an MLP.

    That is the first convolution, and what shares with it the largest module that holds less than a quarter of all
    layers.
    """
    layers = [name for name, _ in _layers(model)]
    return sorted(
        {name for first in first_convolutions(model) for name in _stem_around(first, layers)}, key=layers.index
    )


def block_layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """All convolutions and linear layers of the feature extractor's blocks: neither stem nor head, in module order.

    Contract: (name, layer) with `model.get_submodule(name) is layer`; each layer once; shortcut convolutions,
    squeeze-and-excitation, attention and MLP layers count (19 of ResNet-18, 52 of ResNet-50); grouped convolutions
    come with their `groups`. The packed input projection of torch.nn.MultiheadAttention is a bare parameter and no
    layer, so it is not listed; nor is a layer whose weight is computed (parametrised) or that of a layer before it.
    Empty when there is nothing between stem and head: the caller decides what that means.
    """
    outside = {*head_names(model), *stem_names(model)}
    return [(name, layer) for name, layer in weight_layers(model) if name not in outside]


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """All convolutions and linear layers with a weight of their own, stem and head too, in module order."""
    weights = {name for name, _ in model.named_parameters()}
    return [(name, layer) for name, layer in _layers(model) if f"{name}.weight" in weights]


def _layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def _timm_part(model: nn.Module) -> tuple[str, Any]:
    """The outermost timm network inside `model` and the prefix of its names; ("", None) where there is none."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "default_cfg", None), dict):
            return f"{name}." if name else "", module
    return "", None


def _as_list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def first_convolutions(model: nn.Module) -> list[str]:
    """The convolutions that see the pixels: as timm names them, else the one registered first."""
    prefix, network = _timm_part(model)
    if network is not None:
        named = [f"{prefix}{name}" for name in _as_list(network.default_cfg.get("first_conv"))]
        if found := [name for name in named if isinstance(submodule(model, name), nn.Conv2d)]:
            return found
    return [name for name, layer in _layers(model) if isinstance(layer, nn.Conv2d)][:1]


def _stem_around(first: str, layers: list[str]) -> list[str]:
    parts = first.split(".")
    for depth in range(1, len(parts)):
        inside = [name for name in layers if name.startswith(".".join(parts[:depth]) + ".")]
        if len(inside) < len(layers) / 4:
            return inside
    return [first]
