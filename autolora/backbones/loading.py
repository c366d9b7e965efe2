"""A backbone for a new task: weights as they exist in the world, laid onto a network that starts with a fresh head.

    model = load_backbone("resnet18", weights="robust.pt", classes=10, image_size=32, stem="lowres")
    print(model.loading)       # what was found in the file, and what was done with it

What fits is decided here; files are read in checkpoints.py and fetched in downloads.py.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.backbones.checkpoints import Checkpoint, Fitted, fit_state, grouped, read_checkpoint
from autolora.backbones.classifier import IMAGENET_MEAN, IMAGENET_STD, Classifier, Spec, build, check_spec, checked
from autolora.backbones.layers import first_convolutions, head_names
from autolora.common.downloads import fetch
from autolora.common.errors import BadArgument
from autolora.threat import Threat


@dataclass(frozen=True)
class Loading:
    """What was found in a file of weights and what was done with it; str() is a report for people."""

    path: str
    sha256: str  # of the file
    container: str  # the keys that led to the weights
    prefix: str  # what stood before the names
    loaded: int  # tensors
    head: str
    stem: str
    converted: str  # by whom, where names or positions had to be
    normaliser: str  # where mean and std come from
    left_out: tuple[str, ...] = ()  # keys of the file that the network has no place for
    duplicates: int = 0  # equal copies under another prefix
    inert: tuple[str, ...] = ()  # classes and functions in the file that were not run
    others: tuple[str, ...] = ()  # further sets of weights in the file

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in dataclasses.asdict(self).items() if value)


def load_backbone(
    arch: str,
    weights: str | Path | None = None,
    classes: int = 10,
    image_size: int = 32,
    *,
    stem: str = "timm",
    options: dict[str, Any] | None = None,
    network_size: int | None = None,
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    sha256: str | None = None,
    trained_for: str | None = None,
    keep_head: bool = False,
    seed: int = 0,
) -> Classifier:
    """A classifier for a new task: the feature extractor from `weights`, the head fresh from `seed` unless kept.

    `weights`: a path, a URL, a Hugging Face id (`owner/name` or `hf:owner/name[@revision][/file]`), or None. mean and
    std are those given, else the file's, else timm's for this network, else ImageNet's. Anything of the feature
    extractor that does not fit stops with the keys; what was done with the rest is in `.loading`.
    """
    count, side = operator.index(classes), operator.index(image_size)  # of numpy too
    _check_trained_for(trained_for)
    size = network_size if network_size != image_size else None
    spec = Spec(arch, count, side, stem, options or {}, size, (0.0,), (1.0,), channels, trained_for)
    body = build(spec, seed).body
    if weights is None:
        return checked(Classifier(body, _with_normaliser(spec, mean, std, None, None)[0]))
    checkpoint = read_checkpoint(fetch(str(weights), sha256))
    _refuse_other_stem(checkpoint, spec)
    fitted = _fit(checkpoint, body, spec)
    spec, origin = _with_normaliser(spec, mean, std, checkpoint, fitted)
    spec = dataclasses.replace(spec, trained_for=trained_for or _trained_for(checkpoint))
    stem_note = _fit_stem(body, fitted)
    head_note = _fit_head(body, fitted, keep=keep_head)
    _refuse_mismatch(fitted, checkpoint, body, spec, head_note)
    body.load_state_dict(_over(body.state_dict(), fitted.state))
    model = checked(Classifier(body, spec))
    model.loading = _record(checkpoint, fitted, head_note, stem_note, origin)
    return model


def _check_trained_for(text: str | None) -> None:
    try:
        if text is not None:
            Threat.parse(text)
    except (BadArgument, AttributeError) as error:
        raise BadArgument("trained_for", text, f"expected a threat such as 'linf:8/255' ({error})") from None


def _refuse_other_stem(checkpoint: Checkpoint, spec: Spec) -> None:
    """A max-pool has no weights: without it the same file fits, and is another network."""
    made = Spec.from_json(checkpoint.notes["spec"]) if "spec" in checkpoint.notes else spec
    if made.arch == spec.arch and made.stem != spec.stem:
        said = f"{checkpoint.path} was made with stem {made.stem!r}: that is another network"
        raise BadArgument("stem", spec.stem, said)


def _over(fresh: dict[str, Tensor], taken: dict[str, Tensor]) -> dict[str, Tensor]:
    """In place, because a state dict carries the versions of its modules beside its tensors."""
    fresh.update(taken)
    return fresh


def _fit(checkpoint: Checkpoint, body: nn.Module, spec: Spec) -> Fitted:
    """Names as they are, or as timm's own converter for this family of networks makes them (it also fits positions)."""
    expected = body.state_dict()
    plain = fit_state(checkpoint.state, expected)
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if convert is None or ":" in spec.arch or not (_misfits(plain, body)):
        return plain
    bare = {
        key.removeprefix(plain.prefix): value for key, value in checkpoint.state.items() if key.startswith(plain.prefix)
    }
    try:
        converted = fit_state(convert(bare, body), expected)
    except Exception:  # a converter meets names that it was not written for: then the plain names are what we report
        return plain
    if len(_misfits(converted, body)) >= len(_misfits(plain, body)):
        return plain
    by = f"names or positions converted by {type(body).__module__}.checkpoint_filter_fn"
    return dataclasses.replace(converted, prefix=plain.prefix, normaliser=plain.normaliser, converted=by)


def _misfits(fitted: Fitted, body: nn.Module) -> list[str]:
    heads = tuple(f"{name}." for name in head_names(body))
    return [key for key in (*fitted.missing, *fitted.reshaped) if not key.startswith(heads)]


def _with_normaliser(
    spec: Spec,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    checkpoint: Checkpoint | None,
    fitted: Fitted | None,
) -> tuple[Spec, str]:
    """mean and std, and where they come from: the caller, the file, timm, ImageNet."""
    if (mean is None) != (std is None):
        raise BadArgument("mean", mean, "`mean` and `std` belong together: give both, or none")
    found: Any
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, (int, float)):
            raise BadArgument(name, value, f"expected one value a channel, such as [{value}]")
    if mean is not None and std is not None:
        found, origin = (mean, std), "as given"
    elif fitted is not None and fitted.normaliser is not None:
        found, origin = fitted.normaliser, "a normalising layer in the file"
    elif checkpoint is not None and "spec" in checkpoint.notes:
        saved = Spec.from_json(checkpoint.notes["spec"])
        found, origin = (saved.mean, saved.std), "the file's own spec"
    elif checkpoint is not None and {"mean", "std"} <= checkpoint.notes.get("pretrained_cfg", {}).keys():
        config = checkpoint.notes["pretrained_cfg"]
        found, origin = (config["mean"], config["std"]), "config.json beside the file"
    elif ":" not in spec.arch and spec.channels == 3:
        known: Any = timm.get_pretrained_cfg(spec.arch)
        found, origin = (known.mean, known.std), f"timm's default for {spec.arch}"
    elif spec.channels == 3:
        found, origin = (IMAGENET_MEAN, IMAGENET_STD), "ImageNet's, for want of others"
    else:
        found, origin = ((0.0,), (1.0,)), "none: pixels as they are"
    spec = dataclasses.replace(spec, mean=tuple(map(float, found[0])), std=tuple(map(float, found[1])))
    check_spec(spec)
    return spec, origin


def _trained_for(checkpoint: Checkpoint) -> str | None:
    """What a file of save_classifier says: the threat of its own training, else of the weights that it started from."""
    if "spec" not in checkpoint.notes:
        return None
    return checkpoint.notes.get("threat") or Spec.from_json(checkpoint.notes["spec"]).trained_for


def _fit_stem(body: nn.Module, fitted: Fitted) -> str:
    """A larger first kernel, or one for other channels, made to fit; the sentence says what was done."""
    said = []
    for name in first_convolutions(body):
        there = fitted.reshaped.get(f"{name}.weight")
        here: Any = body.get_submodule(name)
        if there is None or there.ndim != 4 or there.shape[0] != here.weight.shape[0]:
            continue
        if there.shape[1] != here.weight.shape[1]:
            said.append(f"{name}: {there.shape[1]} input channels made {here.weight.shape[1]} (summed, or repeated)")
            there = timm.models.adapt_input_conv(here.weight.shape[1], there)
        if there.shape[2:] != here.weight.shape[2:] and here.kernel_size == (3, 3):
            said.append(
                f"{name}: {there.shape[2]}x{there.shape[3]} kernel reduced to 3x3 (its answer to the enlarged patch)"
            )
            there = reduce_kernel(there)
        if there.shape == here.weight.shape:
            fitted.state[f"{name}.weight"] = there
            del fitted.reshaped[f"{name}.weight"]
    return "; ".join(said)


def reduce_kernel(weight: Tensor, size: int = 3) -> Tensor:
    """The small kernel that answers to a size x size patch as the large one does to that patch enlarged (bilinear).

    w_small = E^T w_large, with E the matrix that enlarges: flat patches give the same answer, so that the batch
    norm after it still fits; low frequencies nearly so; what only a fine grid can show is lost.
    """
    basis = torch.eye(size * size).view(size * size, 1, size, size)
    enlarge = F.interpolate(basis, size=tuple(weight.shape[2:]), mode="bilinear", align_corners=False)
    return torch.einsum("oikl,pkl->oip", weight.float(), enlarge[:, 0]).unflatten(2, (size, size)).to(weight.dtype)


def _fit_head(body: nn.Module, fitted: Fitted, *, keep: bool) -> str:
    """Leave the fresh head in place, or keep the file's where that is asked for and possible."""
    said = []
    for name in head_names(body):
        here: Any = body.get_submodule(name)
        classes, key = here.weight.shape[0], f"{name}.weight"
        there = fitted.state.get(key, fitted.reshaped.get(key))
        if keep and key not in fitted.state:
            found = "no such layer" if there is None else f"{tuple(there.shape)}"
            raise ValueError(
                f"the head cannot be kept: the file has {found} for {key}, the task needs {tuple(here.weight.shape)}"
            )
        if not keep:
            fitted.state = {k: v for k, v in fitted.state.items() if not k.startswith(f"{name}.")}
        fitted.reshaped = {k: v for k, v in fitted.reshaped.items() if not k.startswith(f"{name}.")}
        fitted.missing = [k for k in fitted.missing if not k.startswith(f"{name}.")]
        source = "none in the file" if there is None else f"the file's has {there.shape[0]} classes"
        said.append(f"{name} {'kept' if keep else 'fresh'}, {classes} classes ({source})")
    return "; ".join(said)


def _refuse_mismatch(fitted: Fitted, checkpoint: Checkpoint, body: nn.Module, spec: Spec, head_note: str) -> None:
    """All of the feature extractor or nothing: a layer left at random is a disaster that looks like a bad result."""
    children = {name for name, _ in body.named_children()}
    inside = [key for key in fitted.unexpected if key.split(".")[0] in children or key.split(".")[0].isdigit()]
    inside = [key for key in inside if not key.startswith(tuple(f"{name}." for name in head_names(body)))]
    if not (fitted.missing or fitted.reshaped or inside):
        return
    expected = body.state_dict()
    shapes = [f"{k} is {tuple(v.shape)}, expected {tuple(expected[k].shape)}" for k, v in fitted.reshaped.items()]
    lines = [
        f"{checkpoint.path} does not fit {spec.arch} (stem {spec.stem}, options {spec.options}):",
        f"missing: {grouped(fitted.missing)}",
        f"unexpected: {grouped(fitted.unexpected)}",
        f"of another shape: {len(shapes)}"
        + (f" ({'; '.join(shapes[:4])}{'; ...' if len(shapes) > 4 else ''})" if shapes else ""),
        f"head: {head_note}",
        _advice(checkpoint, fitted, body),
    ]
    raise ValueError("\n  ".join(line for line in lines if line))


def _advice(checkpoint: Checkpoint, fitted: Fitted, body: nn.Module) -> str:
    if "spec" in checkpoint.notes:
        saved = Spec.from_json(checkpoint.notes["spec"])
        return f"the file says that it is {saved.arch} with stem {saved.stem} and options {saved.options}"
    if "architecture" in checkpoint.notes:
        return f"config.json beside the file says that it is {checkpoint.notes['architecture']}"
    first = [fitted.reshaped[key] for name in first_convolutions(body) if (key := f"{name}.weight") in fitted.reshaped]
    if any(kernel.ndim == 4 and kernel.shape[2:] == (3, 3) for kernel in first):
        return "the file's first kernel is 3x3, as in networks for small images: `stem` lowres may fit it"
    return ""


def _record(checkpoint: Checkpoint, fitted: Fitted, head: str, stem: str, origin: str) -> Loading:
    return Loading(
        path=str(checkpoint.path),
        sha256=checkpoint.sha256,
        container=checkpoint.container,
        prefix=fitted.prefix,
        loaded=len(fitted.state),
        head=head,
        stem=stem,
        converted=fitted.converted,
        normaliser=origin,
        left_out=tuple(fitted.unexpected),
        duplicates=len(fitted.duplicates),
        inert=tuple(checkpoint.inert),
        others=tuple(checkpoint.others),
    )
