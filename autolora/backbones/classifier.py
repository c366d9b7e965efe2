"""Any pre-trained network as a classifier on [0,1] pixels: normalising and resizing live inside the model.

    model = build(Spec("resnet18", classes=10, image_size=32, stem="lowres"), seed=0)     # fresh weights
    model = load_backbone("resnet18", "robust.pt", classes=10, stem="lowres")       # autolora/backbones/loading.py

`arch` is a timm model name, `torchvision:NAME`, or `package.module:Class` (a torch.nn.Module with a linear head).
A `Classifier` knows its own `Spec`, so that one safetensors file is enough to build it again:

    save_classifier(model, "merged.safetensors");  model = load_classifier("merged.safetensors")
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.backbones.layers import first_convolutions, head_name, head_names, submodule
from autolora.backbones.mixture import LogitMap, Mixture, View
from autolora.common.errors import BadArgument, first_line
from autolora.common.files import replacing, stored_apart, weights_sha256

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STEMS = ("timm", "lowres", "nopool")
PACKAGES = ("torchvision", "timm", "torch")  # whose modules a file may name
RESERVED = ("pretrained", "num_classes", "in_chans", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


@dataclass(frozen=True)
class Spec:
    """All that is needed to build the network again, without its weights."""

    arch: str  # a timm model name | torchvision:NAME | package.module:Class
    classes: int
    image_size: int  # of the images as given; the attack lives in these pixels
    stem: str = "timm"  # timm: as published | lowres: 3x3 stride 1, no max-pool | nopool: no max-pool
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of timm.create_model, or of the class
    network_size: int | None = None  # resize to this inside the model (nearest neighbour); None: no resizing
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3  # of the images
    trained_for: str | None = None  # the threat, in pixels, that the starting weights were trained for: "linf:2/255"
    mixture: dict[str, float | None] | None = None  # of two such networks (mixture.LogitMap's fields)

    def to_json(self) -> str:
        fields = dataclasses.asdict(self)
        return json.dumps({k: v for k, v in fields.items() if k != "mixture" or v is not None}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Spec:
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})


class Classifier(nn.Module):
    """pixels in [0,1] -> (resize) -> normalise -> body -> logits."""

    mean: Tensor
    std: Tensor
    loading: object = None  # of load_backbone: what was found in the file of weights, and what was done with it

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


def mix(robust: Classifier, accurate: Classifier, mapping: LogitMap) -> Classifier:
    """Two classifiers of one kind as one, in eval."""
    pair = [dataclasses.replace(model.spec, trained_for=None) for model in (robust, accurate)]
    if pair[0] != pair[1]:
        raise ValueError(f"two networks of one kind can be mixed: {pair[0].arch} and {pair[1].arch} are not")
    spec = dataclasses.replace(robust.spec, mixture=dataclasses.asdict(mapping))
    return Classifier(Mixture(robust.body, accurate.body, mapping), spec).to(robust.mean.device).eval()


def with_view(model: Classifier, view: View) -> Classifier:
    """A mixture with another gradient; it shares the weights."""
    assert isinstance(model.body, Mixture)
    return Classifier(model.body.with_view(view), model.spec).to(model.mean.device).train(model.training)


def robust_part(model: Classifier) -> Classifier:
    """Of a mixture; it shares the weights."""
    assert isinstance(model.body, Mixture)
    spec = dataclasses.replace(model.spec, mixture=None)
    return Classifier(model.body.robust, spec).to(model.mean.device).train(model.training)


# --- spec -> network --------------------------------------------------------------------------------------------------


def build(spec: Spec, seed: int = 0) -> Classifier:
    """The network that a spec describes, with fresh weights from `seed`; torch's global generator is untouched."""
    check_spec(spec)
    with drawn_from(seed):
        bodies = [adapt_stem(_body(spec), spec.stem) for _ in range(1 if spec.mixture is None else 2)]
    return _of_bodies(bodies, spec)


def _of_bodies(bodies: list[nn.Module], spec: Spec) -> Classifier:
    if spec.mixture is None:
        return Classifier(bodies[0], spec)
    mapping: dict[str, Any] = spec.mixture
    return Classifier(Mixture(bodies[0], bodies[1], LogitMap(**mapping)), spec)


def check_spec(spec: Spec) -> None:
    if spec.classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, not {spec.classes}")
    if reserved := sorted(set(spec.options) & set(RESERVED)):
        raise BadArgument(
            "options", spec.options, f"{', '.join(reserved)} is set by the other arguments, and by the data"
        )
    if len(spec.mean) not in (1, spec.channels) or len(spec.std) not in (1, spec.channels):
        raise ValueError(f"mean {spec.mean} and std {spec.std} need one value for each of {spec.channels} channels")
    if not all(map(math.isfinite, spec.mean)):
        raise BadArgument("mean", spec.mean, "expected finite values")
    if not all(0 < value < math.inf for value in spec.std):
        raise BadArgument("std", spec.std, "expected values above 0")


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Fresh weights depend on `seed` alone, and the caller's random state is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _body(spec: Spec) -> nn.Module:
    options = {
        k: tuple(v) if isinstance(v, list) else v for k, v in spec.options.items()
    }  # JSON and YAML have no tuples
    origin, colon, name = spec.arch.partition(":")
    try:
        if not colon:
            return _timm_body(spec, options)
        body = _torchvision_body(name, options) if origin == "torchvision" else _class(origin, name)(**options)
    except TypeError as error:
        raise BadArgument("options", options, f"they do not suit {spec.arch}: {error}") from None
    return replace_head(body, spec.classes)


def _timm_body(spec: Spec, options: dict[str, Any]) -> nn.Module:
    _refuse_unknown_of_timm(spec.arch)
    config = timm.get_pretrained_cfg(spec.arch)
    if config is not None and config.fixed_input_size and "img_size" not in options:
        options = {"img_size": spec.network_size or spec.image_size, **options}
    return timm.create_model(spec.arch, pretrained=False, num_classes=spec.classes, in_chans=spec.channels, **options)


def refuse_unknown(arch: str) -> None:
    """Before anything is built: a name that timm or torchvision does not know, or a class that cannot be imported."""
    origin, colon, name = arch.partition(":")
    if not colon:
        _refuse_unknown_of_timm(arch)
    elif origin == "torchvision":
        _refuse_unknown_of_torchvision(name)
    else:
        _class(origin, name)


def _refuse_unknown_of_timm(arch: str) -> None:
    name, _, tag = arch.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise BadArgument("arch", arch, f"timm {timm.__version__} does not know it: {hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise BadArgument("arch", arch, f"{name} has no tag {tag!r}, but {', '.join(tags) or 'none at all'}")


def _refuse_unknown_of_torchvision(name: str) -> None:
    from torchvision.models import list_models

    if name not in list_models():
        near = difflib.get_close_matches(name, list_models(), 5)
        hint = f"did you mean {', '.join(near)}?" if near else "see torchvision.models.list_models()"
        raise BadArgument("arch", f"torchvision:{name}", f"torchvision does not know it: {hint}")


def _torchvision_body(name: str, options: dict[str, Any]) -> nn.Module:
    from torchvision.models import get_model

    _refuse_unknown_of_torchvision(name)
    return get_model(name, weights=None, **options)


def _class(module: str, name: str) -> Callable[..., nn.Module]:
    """Classes only: the name may come from a file, and building a module is all that it may ask for."""
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadArgument("arch", f"{module}:{name}", f"it cannot be imported: {error}") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise BadArgument("arch", f"{module}:{name}", "expected a class derived from torch.nn.Module")
    return found


def replace_head(module: nn.Module, classes: int) -> nn.Module:
    """A fresh last layer where the number of classes is another one; in place."""
    for name in head_names(module):
        old: Any = module.get_submodule(name)
        if isinstance(old, nn.Linear) and old.out_features != classes:
            _put(module, name, nn.Linear(old.in_features, classes, bias=old.bias is not None))
        elif isinstance(old, nn.Conv2d) and old.out_channels != classes:
            _put(module, name, nn.Conv2d(old.in_channels, classes, 1, bias=old.bias is not None))
    return module


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, layer)


def adapt_stem(body: nn.Module, stem: str) -> nn.Module:
    """For small images, in place: no max-pool (nopool), and a first convolution of 3x3 and stride 1 too (lowres)."""
    if stem not in STEMS:
        raise BadArgument("stem", stem, f"expected one of {', '.join(STEMS)}")
    if stem == "timm":
        return body
    pools = [name for name in POOLS if isinstance(submodule(body, name), nn.Module)]
    if stem == "nopool" and not pools:
        raise BadArgument("stem", stem, f"{type(body).__name__} has no max-pool in its stem: use 'timm'")
    if stem == "lowres":
        for name in first_convolutions(body):
            _put(body, name, _fine(body.get_submodule(name), type(body).__name__))
    for name in pools:
        _put(body, name, nn.Identity())
    return body


POOLS = ("maxpool", "stem.pool", "features.pool0")  # of ResNets, pre-activation ResNets, DenseNets


def _fine(conv: Any, network: str) -> nn.Conv2d:
    """The same convolution with 3x3 and stride 1."""
    if conv.kernel_size not in ((3, 3), (5, 5), (7, 7)) or conv.kernel_size[0] <= conv.stride[0]:
        raise BadArgument(
            "stem",
            "lowres",
            f"it has no meaning for {network}, whose stem cuts the image into patches of {conv.kernel_size[0]} by "
            f"{conv.kernel_size[1]}; use 'timm', with `options` patch_size where the network has it, or let the model "
            "enlarge the images: `network_size`",
        )
    return nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1, bias=conv.bias is not None)


def as_classifier(
    module: nn.Module,
    classes: int | None = None,
    image_size: int = 32,
    *,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    network_size: int | None = None,
    channels: int = 3,
    trained_for: str | None = None,
    seed: int = 0,
) -> Classifier:
    """Any module with a linear head as a classifier; with `classes` given it gets a fresh head.

    The module is taken to see pixels in [0,1] unless mean and std say how they are normalised for it. Its file needs
    the module again: load_classifier(path, body=module).
    """
    head: Any = module.get_submodule(head_name(module))
    if classes is not None:
        with drawn_from(seed):
            _put(module, head_name(module), nn.Linear(head.in_features, classes, bias=head.bias is not None))
        head = module.get_submodule(head_name(module))
    spec = Spec(
        arch=f"{type(module).__module__}:{type(module).__qualname__}",
        classes=head.out_features,
        image_size=image_size,
        network_size=network_size,
        mean=tuple(mean),
        std=tuple(std),
        channels=channels,
        trained_for=trained_for,
    )
    check_spec(spec)
    like = next(module.parameters())
    return checked(Classifier(module, spec).to(like.device, like.dtype))


@torch.no_grad()
def checked(model: Classifier) -> Classifier:
    """Two grey images through the network as in training: it must give one row of `classes` logits for each.

    In training, because some networks then add auxiliary outputs; on copies of the buffers, so that no batch-norm
    statistic moves, and without drawing from the caller's random state.
    """
    spec = model.spec
    grey = torch.full((2, spec.channels, spec.image_size, spec.image_size), 0.5)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    modes = [(module, module.training) for module in model.modules()]
    try:
        with drawn_from(0):
            logits = torch.func.functional_call(model.train(), buffers, grey.to(model.mean))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise BadArgument(
            "image_size",
            spec.image_size,
            f"{spec.arch} does not run on images of that size ({first_line(error)}): set `network_size` to the one "
            "that it was made for; the model then enlarges them inside",
        ) from None
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(logits, Tensor) or logits.shape != (2, spec.classes):
        found = f"a tensor of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(
            f"{spec.arch} gives {found} for 2 images in training, expected 2 rows of {spec.classes} logits"
        )
    return model


def save_classifier(model: Classifier, path: str | Path, **notes: str) -> str:
    """One self-describing file: weights, spec, and short notes (all text). Returns the sha256 of the weights."""
    state = stored_apart({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    digest = weights_sha256(state)
    record = {"spec": model.spec.to_json(), "weights_sha256": digest, **notes}
    with replacing(path) as part:  # one metadata key: safetensors writes several in no fixed order
        safetensors.torch.save_file(state, part, metadata={"autolora": json.dumps(record, sort_keys=True)})
    return digest


def load_classifier(path: str | Path, body: nn.Module | None = None) -> Classifier:
    """The inverse of save_classifier; refuses a file whose weights are not the ones that were saved.

    `body` is the network for files of modules that cannot be built from their name (see as_classifier).
    """
    metadata = read_notes(path)
    if "spec" not in metadata:
        raise ValueError(f"{path} was not written by save_classifier: start from it with load_backbone")
    spec = Spec.from_json(metadata["spec"])
    if body is None:
        _refuse_foreign_module(path, spec.arch)
    model = (
        build(spec)
        if body is None
        else _of_bodies([body] if spec.mixture is None else [body, copy.deepcopy(body)], spec)
    )
    state = safetensors.torch.load_file(path)
    if weights_sha256(state) != metadata["weights_sha256"]:
        raise ValueError(f"{path}: the weights are not those that were saved (sha256 differs)")
    model.load_state_dict(state)
    return model.eval()


def _refuse_foreign_module(path: str | Path, arch: str) -> None:
    """To import a module runs its code, and here a file names it: only known ones, what is imported already, and what
    lies in the folder that we work in, which is the user's own.
    """
    module, colon, _ = arch.partition(":")
    package = module.partition(".")[0]
    if not colon or package in PACKAGES or module in sys.modules:
        return
    if not module.replace(".", "").isidentifier() or PathFinder.find_spec(package, [str(Path.cwd())]) is None:
        raise ValueError(
            f"{path} asks for {arch}, code that is neither imported nor in this folder: import {module} first where "
            "you trust the file, or give the network as body="
        )


def read_notes(path: str | Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return json.loads((file.metadata() or {}).get("autolora", "{}"))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is a damaged or truncated safetensors file ({error})") from None
