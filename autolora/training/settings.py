"""What a run is given: its settings, the images and the labels. All that can be wrong is said before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autolora.backbones.frozen import frozen
from autolora.backbones.layers import head_name
from autolora.common.errors import BadArgument, Words
from autolora.data.batches import AUGMENTATIONS, StoredImages, centre, take, to_pixels
from autolora.threat import Threat, require_threat
from autolora.training.axes import RANK, TEACHERS, clashes
from autolora.training.objectives import METHODS, REFERENCES

Split = tuple[StoredImages, Tensor]
PRECISIONS = ("auto", "float32", "bfloat16")
SWITCH = ("auto", True, False)
STARTS = ("pretrained", "robust_head")
ATTACKS = ("pgd", "single", "auto")
TRAINS = ("all", "lora", "head", "blocks", "prominent")
EPS_SCHEDULES = ("auto", "constant", "ramp")
OTHER_WORDS = {  # what others call our settings
    "lr": "rate",
    "learning_rate": "rate",
    "weight_decay": "decay",
    "ema": "average",
    "augment": "augmentation",
    "batch": "batch_size",
    "amp": "precision",
    "dtype": "precision",
    "random_state": "seed",
}
SMALL = 20_000  # training images below which the paper's learning-rate rule was seen to starve (docs/log/28)


@dataclass(frozen=True)
class Settings:
    """All that determines a run, the network and the data apart."""

    threat: Threat
    method: str = "autolora"
    reference: str = "auto"  # auto: `decided` below
    epochs: int = 60
    batch_size: int = 128
    seed: int = 0
    augmentation: str = "auto"
    rate: float | None = None  # None: the method's own; for searches over the baselines' learning rate
    decay: float | None = None
    start: str = "pretrained"  # robust_head: the head alone first, on attacked images
    attack: str = "auto"  # pgd; single: one gradient an image; auto: one for as long as it serves, or pgd: `decided`
    trains: str = "all"  # lora: a low-rank change of each layer, norms and head; head: nothing else;
    # blocks: head and some blocks; prominent: in each step the weights with large gradients
    blocks: tuple[str, ...] | None = None  # where blocks are trained: which; None: they are chosen first
    rank: int = RANK  # of AutoLoRa's branch, and of the change that lora trains
    weight_attack: float | None = None  # how far each layer's weights are moved against the step, in their own norm
    smoothing: float = 0.0  # of the labels in every cross-entropy
    eps_schedule: str = "auto"  # constant; ramp: 0 at first, then on a straight line to eps; auto: `robust_already`
    gamma: float = 1.0  # TWINS only
    teacher: str | None = None  # distill only: a classifier file, or first_pass: AutoLoRa first
    natural_teacher: str | None = None  # distill only: a classifier file, or twin: the natural twin first
    average: float | None = None  # decay of averaged weights, validated and shipped in place of the last ones
    precision: str = "auto"
    compile: bool | str = "auto"
    channels_last: bool | str = "auto"  # the memory format of weights and images


def check_call(model: Any, threat: Any, settings: Mapping[str, Any]) -> None:
    """What a newcomer mixes up: other libraries' names, a function for a network, a radius for a threat."""
    known = [field.name for field in fields(Settings)]
    for name in settings.keys() - set(known):
        meant = OTHER_WORDS.get(name) or next(iter(get_close_matches(name, known, 1)), None)
        hint = f"did you mean {meant}?" if meant else f"there are {', '.join(known[1:])}"
        raise TypeError(f"finetune() has no setting {name!r}: {hint}")
    if not isinstance(model, nn.Module):
        raise BadArgument("model", Words(f"a {type(model).__name__}"), "expected a torch.nn.Module with a linear head")
    require_threat(threat)


def plain_number(value: Any) -> Any:
    """NumPy's numbers as Python's: torch.split and files that hold tensors alone take no others."""
    return value.item() if isinstance(value, np.generic) else value


NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "rate": (lambda v: 0 < v < inf, "a number above 0"),
    "decay": (lambda v: 0 <= v < inf, "a number from 0"),
    "gamma": (lambda v: 0 <= v < inf, "a number from 0"),
    "average": (lambda v: 0 < v < 1, "a decay between 0 and 1, such as 0.995"),
    "smoothing": (lambda v: 0 <= v <= 0.3, "a number from 0 to 0.3"),
    "weight_attack": (lambda v: 0 <= v <= 0.1, "a number from 0 to 0.1"),
}
OPTIONAL = ("rate", "decay", "average", "weight_attack")  # these may be None


def check_settings(settings: Settings) -> None:
    for key, allowed in (
        ("method", METHODS),
        ("reference", ("auto", *REFERENCES)),
        ("augmentation", AUGMENTATIONS),
        ("start", STARTS),
        ("attack", ATTACKS),
        ("trains", TRAINS),
        ("eps_schedule", EPS_SCHEDULES),
        ("precision", PRECISIONS),
        ("compile", SWITCH),
        ("channels_last", SWITCH),
    ):
        if not _is_one_of(getattr(settings, key), allowed):
            raise BadArgument(key, getattr(settings, key), f"expected one of {', '.join(map(str, allowed))}")
    for key, least in (("epochs", 1), ("batch_size", 2), ("rank", 1), ("seed", None)):
        value = getattr(settings, key)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or (least and value < least):
            raise BadArgument(key, value, "expected a whole number" + (f" from {least}" if least else ""))
    if settings.threat.norm == "l1":
        raise BadArgument("norm", "l1", "training knows linf and l2; evaluate l1 with AutoAttack")
    for key, (fits, expected) in NUMBERS.items():
        value = getattr(settings, key)
        if value is None and key in OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not fits(float(value)):
            raise BadArgument(key, value, f"expected {expected}")
    if not isinstance(settings.blocks, str | Sequence | None):
        raise BadArgument("blocks", settings.blocks, "expected names of blocks, as a tuple of strings")
    if settings.blocks is not None and settings.trains != "blocks":
        raise BadArgument("blocks", settings.blocks, f"trains is {settings.trains}: set it to blocks")
    for key in TEACHERS:
        value = getattr(settings, key)
        if not isinstance(value, str | None):
            reason = "expected the path of a file of autolora.backbones.classifier.save_classifier"
            raise BadArgument(key, Words(f"a {type(value).__name__}"), f"{reason}, or {TEACHERS[key]}")
    for key, value, reason in clashes(settings, settings.threat.norm):
        raise BadArgument(key, value, reason)


def _is_one_of(value: Any, allowed: Iterable[Any]) -> bool:
    return any(value is one or (isinstance(value, str) and value == one) for one in allowed)


def decided(settings: Settings, train: Split) -> Settings:
    """`reference: auto` is `best` on small data and `paper` on large; with any other than `best`, `attack: auto` is
    PGD-10. The record of the run says which."""
    if settings.blocks is not None:
        named: Any = settings.blocks
        settings = replace(settings, blocks=(named,) if isinstance(named, str) else tuple(named))
    if settings.reference == "auto":
        small = len(train[1]) < SMALL or settings.eps_schedule == "ramp"
        settings = replace(settings, reference="best" if small else "paper")
    if settings.attack == "auto":
        one = settings.threat.norm == "linf" and METHODS[settings.method].attacked and settings.reference == "best"
        settings = replace(settings, attack="auto" if one else "pgd")
    return settings


def as_split(split: tuple[Any, Any], name: str) -> Split:
    """Images of a shape, type and range that training can use, and as many labels."""
    images, labels = _two(split, name)
    labels = labels.numpy(force=True) if isinstance(labels, Tensor) else np.array(labels)
    if not np.issubdtype(labels.dtype, np.number):
        raise ValueError(f"{name} labels are {labels.dtype}: expected {len(images)} whole numbers")
    labels = torch.as_tensor(labels)
    if isinstance(images, list | tuple):
        images = torch.as_tensor(np.array(images))
    if isinstance(images, Tensor):
        images = images.detach()  # of a caller who attacked them: no slope is asked of stored images
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        cure = _other_shape(tuple(images.shape))
        raise ValueError(f"{name} images have the shape {tuple(images.shape)}: expected [n, 3, side, side]{cure}")
    if str(images.dtype).removeprefix("torch.") not in ("uint8", "float32", "float64"):
        raise ValueError(f"{name} images are {images.dtype}: expected uint8, or floats in [0, 1]")
    if labels.shape != (len(images),) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        cure = _other_labels(labels, len(images))
        raise ValueError(
            f"{name} labels: {labels.dtype} {tuple(labels.shape)}, expected {len(images)} whole numbers{cure}"
        )
    if len(images) == 0:
        raise ValueError(f"the {name} part is empty")
    if "uint8" not in str(images.dtype):
        _check_range(images, name)
    return images, labels.long()


def _two(split: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(split, tuple | list) or len(split) != 2:
        raise ValueError(
            f"the {name} part is a {type(split).__name__}: expected a pair (images, labels) of arrays or tensors"
        )
    return split[0], split[1]


def _other_shape(shape: tuple[int, ...]) -> str:
    """The cure, where one is plain."""
    if len(shape) == 4 and shape[3] == 3:
        return "; channels come first: x.permute(0, 3, 1, 2) of a tensor, x.transpose(0, 3, 1, 2) of an array"
    if len(shape) == 4 and shape[1] == 1:
        return "; grey images have three equal channels: x.repeat(1, 3, 1, 1), numpy.repeat(x, 3, 1)"
    if len(shape) == 4 and shape[1] == 3:
        return "; crop them to squares"
    return "; one image without a batch? x[None]" if len(shape) == 3 and shape[0] == 3 else ""


def _other_labels(labels: Tensor, n: int) -> str:
    if labels.ndim == 2 and len(labels) == n:
        return "; of one-hot rows: y.argmax(1)" if labels.shape[1] > 1 else "; of a column: y[:, 0]"
    whole = labels.dtype.is_floating_point and labels.shape == (n,) and bool((labels == labels.round()).all())
    return "; as whole numbers: y.long() of a tensor, y.astype(int) of an array" if whole else ""


def _check_range(images: StoredImages, name: str) -> None:
    for start in range(0, len(images), 1024):
        chunk = torch.as_tensor(images[start : start + 1024])
        low, high = float(chunk.min()), float(chunk.max())
        if not (low >= 0 and high <= 1):  # also where one of them is NaN
            cure = "; divide them by 255" if 1 < high <= 255 and low >= 0 else ""
            raise ValueError(f"{name} images go from {low:g} to {high:g}: expected uint8, or floats in [0, 1]{cure}")


def check_splits(model: nn.Module, train: Split, val: Split) -> None:
    (x, y), (x_val, y_val) = train, val
    if len(found := y.unique()) < 2:
        raise ValueError(f"the training part holds only class {found.item()}: at least two are needed")
    if x_val.shape[-1] > x.shape[-1]:
        raise ValueError(f"training images ({x.shape[-1]} pixels) are smaller than validation's ({x_val.shape[-1]})")
    classes = count_classes(model, x_val)
    if classes < 2:
        raise ValueError(f"the network has {classes} class: at least two are needed")
    check_head(model, classes)
    for name, labels in (("training", y), ("validation", y_val)):
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(
                f"{name} labels go from {int(labels.min())} to {int(labels.max())}, "
                f"but the network knows the classes 0 to {classes - 1}"
            )
    if missing := set(found.tolist()) - set(y_val.tolist()):
        raise ValueError(
            f"no validation image of class {', '.join(map(str, sorted(missing)))}: the best state is chosen on images "
            "of every class that is trained"
        )


def check_head(model: nn.Module, classes: int) -> None:
    """Of a network of anybody's the head is the layer registered last: where that gives no logits, another one does."""
    name = head_name(model)
    head: Any = model.get_submodule(name)
    answers = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    if answers != classes:
        raise ValueError(
            f"the layer registered last, {name!r}, gives {answers} values and the network {classes} logits: "
            "register the layer that gives the logits last"
        )


def count_classes(model: nn.Module, images: StoredImages) -> int:
    """Of the logits for one image, which also shows that the network takes images of this size."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError(f"{type(model).__name__} has no parameters: nothing to fine-tune")
    image = to_pixels(take(images, torch.arange(1), parameter.device)).to(parameter.dtype)
    try:
        with torch.no_grad(), frozen(model):
            logits = model(centre(image, images.shape[-1]))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"the network does not take images of {images.shape[-1]} pixels: {error}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ValueError(f"the network gives {given} for one image: expected logits, [1, classes]")
    return logits.shape[1]
