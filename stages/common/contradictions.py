"""What one key of params.yaml says and another does not allow, each in a line that names both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autolora.attacks.also_flags import UNION, WORD
from autolora.training.axes import NO_ATTACK, TEACHERS, clashes

if TYPE_CHECKING:
    from stages.common.params import Backbone, Finetune, Params

PRETRAINED = Path("models/pretrained")  # which DVC watches
SMALLEST = 16  # pixels a side that corruptions need


def contradictions(params: Params) -> Iterator[str]:
    """What one section says and another does not allow."""
    for key, value, reason in clashes(params.finetune, params.threat.norm):
        yield f"finetune.{key} is {value}: {reason}"
    if params.threat.norm == "l1":
        yield "threat.norm is l1: training knows linf and l2; l1 is evaluated where evaluate.also names it"
    yield from _of_backbone(params.backbone)
    yield from _of_teachers(params.finetune)
    yield from _of_merge(params)
    also, size = params.evaluate.also, params.data.image_size
    if str(params.threat) in also:
        yield f"evaluate.also is {also}: {params.threat} is the threat itself"
    if WORD in also and size < SMALLEST:
        need = f"{WORD} need images of at least {SMALLEST} pixels a side"
        yield f"evaluate.also is {also}: {need}, and data.image_size is {size}"
    measured = {*also, *([UNION] if params.evaluate.also_threats else [])}
    for word in params.register.gates.also:
        if word not in measured:
            yield f"register.gates.also asks for {word}, which is not measured: evaluate.also is {also}"


def _of_backbone(section: Backbone) -> Iterator[str]:
    mean, std = section.mean, section.std
    if section.sha256 is not None and section.weights is None:
        yield f"backbone.sha256 is {section.sha256}, but backbone.weights is null: there is no file that it could be of"
    if (mean is None) != (std is None):
        yield f"backbone.mean is {mean}, and backbone.std is {std}: they belong together, give both or none"
    elif mean is not None and std is not None:
        if not len(mean) == len(std) in (1, 3):
            yield f"backbone.mean is {mean}, and backbone.std is {std}: give one value each, or one a channel (3)"
        if min(std, default=1.0) <= 0:
            yield f"backbone.std is {std}: expected values above 0"


def inside_pretrained(path: Path, pretrained: Path = PRETRAINED) -> bool:
    """The folder and not the file: DVC reads what a link leads to, and sees it change."""
    return path.parent.resolve().is_relative_to(pretrained.resolve())


def _of_teachers(section: Finetune) -> Iterator[str]:
    for key in TEACHERS:
        path = getattr(section, key)
        if path is not None and Path(path).is_file() and not inside_pretrained(Path(path)):
            said = f"it lies outside {PRETRAINED}/, where DVC does not see it change: copy it there"
            yield f"finetune.{key} is {path}: {said}"


def _of_merge(params: Params) -> Iterator[str]:
    merge, method = params.merge, params.finetune.method
    for key, value in (("start", "robust_head"), ("trains", "blocks")):
        if params.finetune.members > 1 and getattr(params.finetune, key) == value:
            said = f"each would have its own {'head' if key == 'start' else 'blocks'} to start from"
            yield f"finetune.members is {params.finetune.members}, but finetune.{key} is {value}: {said}"
    if merge.soup != "none" and params.finetune.members == 1:
        yield f"merge.soup is {merge.soup}, but finetune.members is 1: a soup needs at least 2"
    if merge.toward == "branch" and merge.alpha not in ("auto", 0) and method != "autolora":
        said = f"finetune.method {method} trains no branch: set merge.alpha to 0 or auto, or merge.toward to natural"
        yield f"merge.alpha is {merge.alpha}, but {said}"
    if merge.toward == "critical" and method in NO_ATTACK:
        said = "there is no robustness that a layer could keep"
        yield f"merge.toward is critical, but finetune.method is {method}: {said}"
    if merge.mix == "none":
        return
    if method in NO_ATTACK:
        yield f"merge.mix is {merge.mix}, but finetune.method is {method}: two natural networks would be mixed"
    if params.evaluate.precision != "float32":
        yield f"merge.mix is {merge.mix}, but evaluate.precision is mixed: a mixture is attacked in float32"
    if params.export.variants:
        yield f"merge.mix is {merge.mix}, but export.variants is not empty: no attack fits a quantised mixture"
