"""A backbone that cannot be had is found by the first stage, not after hours of images have been read.

    refuse_unknown_backbone()      # backbone.arch is 'resnet5': timm ... does not know it: did you mean resnet50?

timm takes seconds to import. What it knows stands in its source, which is read in a fifth of a second.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from autolora.common.downloads import SCHEMES, is_hub
from autolora.common.errors import BadArgument
from stages.common.errors import StageError
from stages.common.params import check
from stages.common.weights import resolve_weights


def refuse_unknown_backbone() -> None:
    """The architecture, and weights that lie here, or whose sha256 is not known: these are fetched to be told it."""
    section = check("params.yaml").backbone
    try:
        _refuse_unknown_arch(section.arch)
        if section.weights and (section.sha256 is None or not _is_elsewhere(section.weights)):
            resolve_weights(section.weights, section.sha256)
    except BadArgument as error:
        raise StageError(f"backbone.{error.argument} is {error.value!r}: {error.reason}") from None


def _is_elsewhere(weights: str) -> bool:
    return weights.startswith(SCHEMES) or is_hub(weights)


def _refuse_unknown_arch(arch: str) -> None:
    if in_source_of_timm(arch):
        return
    from autolora.backbones.classifier import refuse_unknown  # imports timm

    refuse_unknown(arch)


def in_source_of_timm(arch: str) -> bool:
    """Whether timm registers it, read from its files. A name that is not found may still be known, as an old one."""
    found = find_spec("timm")
    if found is None or found.origin is None:
        return False
    name, _, tag = arch.partition(".")
    for file in Path(found.origin).with_name("models").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        if f"\n@register_model\ndef {name}(" in text:
            return not tag or f"'{arch}'" in text
    return False
