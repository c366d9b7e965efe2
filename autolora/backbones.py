"""Any pre-trained network as a classifier on [0,1] pixels: normalising and resizing live inside the model.

    model = load_backbone("resnet18", weights="robust.pt", classes=10, image_size=32, stem="lowres")

A `Classifier` knows its own `Spec`, so that one safetensors file is enough to build it again:

    save_classifier(model, "merged.safetensors");  model = load_classifier("merged.safetensors")
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.files import replacing, weights_sha256

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STEMS = ("timm", "lowres", "nopool")


@dataclass(frozen=True)
class Spec:
    """All that is needed to build the network again, without its weights."""

    arch: str  # a timm model name
    classes: int
    image_size: int  # of the images as given; the attack lives in these pixels
    stem: str = "timm"  # timm: as published | lowres: 3x3 stride 1, no max-pool | nopool: no max-pool
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of timm.create_model
    network_size: int | None = None  # resize to this inside the model (nearest neighbour); None: no resizing
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


class Classifier(nn.Module):
    """pixels in [0,1] -> (resize) -> normalise -> body -> logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, spec: Spec) -> None:
        super().__init__()
        self.body = body
        self.spec = spec
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [n,3,h,w] in [0,1] -> [n,classes]
        if self.spec.network_size is not None:
            x = F.interpolate(x, size=(self.spec.network_size,) * 2, mode="nearest")
        return self.body((x - self.mean) / self.std)


def build(spec: Spec) -> Classifier:
    """The network that a spec describes, with fresh weights."""
    try:
        body = timm.create_model(spec.arch, pretrained=False, num_classes=spec.classes, **_options(spec.options))
    except RuntimeError as error:
        raise ValueError(f"backbone.arch is {spec.arch!r}: timm does not build it ({error})") from error
    return Classifier(adapt_stem(body, spec.stem), spec)


def _options(options: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}  # JSON and YAML have no tuples


def adapt_stem(body: nn.Module, stem: str) -> nn.Module:
    if stem not in STEMS:
        raise ValueError(f"backbone.stem is {stem!r}: expected one of {', '.join(STEMS)}")
    if stem in ("lowres", "nopool") and hasattr(body, "maxpool"):
        body.maxpool = nn.Identity()
    return body


def load_backbone(
    arch: str,
    weights: str | Path | None = None,
    classes: int | Sequence[str] = 10,
    image_size: int = 32,
    stem: str = "timm",
    options: dict[str, Any] | None = None,
) -> Classifier:
    count = classes if isinstance(classes, int) else len(classes)
    model = build(Spec(arch, count, image_size, stem, options or {}))
    if weights is not None:
        state = safetensors.torch.load_file(weights)
        model.load_state_dict({k: v for k, v in state.items() if "fc." not in k}, strict=False)
    return model


# --- what the method needs to know about any network: its head, its stem, and the layers between ---------------------


def head_names(model: nn.Module) -> list[str]:
    """Names of the layers that give the logits: one, or two for distilled transformers (`head`, `head_dist`).

    timm networks say so in their default_cfg (also when wrapped, as in Sequential(normalise, network)); of any other
    module it is the linear layer registered last, or the last 1x1 convolution where it has no linear layer.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    prefix, network = _timm_part(model)
    if network is not None and all(name.startswith(prefix) for name in linear[-1:]):  # else a head was put after it
        named = [f"{prefix}{name}" for name in _as_list(network.default_cfg.get("classifier"))]
        if found := [name for name in named if isinstance(_submodule(model, name), nn.Linear | nn.Conv2d)]:
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
        {name for first in _first_convolutions(model) for name in _stem_around(first, layers)}, key=layers.index
    )


def block_layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """All convolutions and linear layers of the feature extractor's blocks: neither stem nor head, in module order.

    Contract: (name, layer) with `model.get_submodule(name) is layer`; each layer once; shortcut convolutions,
    squeeze-and-excitation, attention and MLP layers count (19 of ResNet-18, 52 of ResNet-50); grouped convolutions
    come with their `groups`. The packed input projection of torch.nn.MultiheadAttention is a bare parameter and no
    layer, so it is not listed. Empty when there is nothing between stem and head: the caller decides what that means.
    """
    outside = {*head_names(model), *stem_names(model)}
    return [(name, layer) for name, layer in _layers(model) if name not in outside]


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


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _first_convolutions(model: nn.Module) -> list[str]:
    """The convolutions that see the pixels: as timm names them, else the one registered first."""
    prefix, network = _timm_part(model)
    if network is not None:
        named = [f"{prefix}{name}" for name in _as_list(network.default_cfg.get("first_conv"))]
        if found := [name for name in named if isinstance(_submodule(model, name), nn.Conv2d)]:
            return found
    return [name for name, layer in _layers(model) if isinstance(layer, nn.Conv2d)][:1]


def _stem_around(first: str, layers: list[str]) -> list[str]:
    parts = first.split(".")
    for depth in range(1, len(parts)):
        inside = [name for name in layers if name.startswith(".".join(parts[:depth]) + ".")]
        if len(inside) < len(layers) / 4:
            return inside
    return [first]


def save_classifier(model: Classifier, path: str | Path, **notes: str) -> str:
    """One self-describing file: weights, spec, and short notes (all text). Returns the sha256 of the weights."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    digest = weights_sha256(state)
    record = {"spec": model.spec.to_json(), "weights_sha256": digest, **notes}
    with replacing(path) as part:  # one metadata key: safetensors writes several in no fixed order
        safetensors.torch.save_file(state, part, metadata={"autolora": json.dumps(record, sort_keys=True)})
    return digest


def load_classifier(path: str | Path) -> Classifier:
    """The inverse of save_classifier; refuses a file whose weights are not the ones that were saved."""
    metadata = read_notes(path)
    model = build(Spec.from_json(metadata["spec"]))
    state = safetensors.torch.load_file(path)
    if weights_sha256(state) != metadata["weights_sha256"]:
        raise ValueError(f"{path}: the weights are not those that were saved (sha256 differs)")
    model.load_state_dict(state)
    return model.eval()


def read_notes(path: str | Path) -> dict[str, str]:
    with safetensors.safe_open(str(path), framework="pt") as file:
        return json.loads((file.metadata() or {}).get("autolora", "{}"))
