"""What was typed, as what is meant; each that cannot be meant in one line."""

from __future__ import annotations

import argparse
import json
from math import isfinite
from pathlib import Path

from autolora.backbones.classifier import IMAGENET_MEAN, IMAGENET_STD
from autolora.command.models import Asked, Normalise
from autolora.common.errors import BadArgument

# Arguments of the library that are typed as options of the same name.
OPTIONS = {
    "data",
    "eps",
    "norm",
    "weights",
    "model",
    "mean",
    "std",
    "images",
    "before-softmax",
    "classes",
    "out",
    "also",
    "budget",
    "processes",
    "size",
    "require-robust",
}


def refuse_shares(wanted: float | None) -> None:
    if wanted is not None and not 0 <= wanted <= 1:
        raise BadArgument("require-robust", wanted, "expected a share of the images, from 0 to 1")


def refuse_minutes(given: float | None) -> None:
    if given is not None and not (isfinite(given) and given > 0):
        raise BadArgument("budget", given, "expected minutes, more than 0")


def of_model(chosen: argparse.Namespace) -> Asked:
    return Asked(
        chosen.model,
        chosen.weights,
        _normalise(chosen),
        channels_last=chosen.layout == "nhwc",
        before_softmax=chosen.before_softmax,
        scores_only=chosen.version == "square",
        size=chosen.size,
        trust=chosen.trust,
    )


def _normalise(chosen: argparse.Namespace) -> Normalise | None:
    if chosen.normalised:
        if chosen.mean or chosen.std:
            raise BadArgument("mean", chosen.mean or chosen.std, "--normalised says it already")
        return IMAGENET_MEAN, IMAGENET_STD
    if (chosen.mean is None) != (chosen.std is None):
        raise BadArgument("mean", chosen.mean, "--mean and --std belong together")
    if chosen.mean is None:
        return None
    std = _numbers("std", chosen.std)
    if min(std) <= 0:
        raise BadArgument("std", chosen.std, "expected numbers above 0")
    return _numbers("mean", chosen.mean), std


def _numbers(option: str, text: str) -> tuple[float, ...]:
    parts = text.split(",")
    if len(parts) not in (1, 3):
        raise BadArgument(option, text, "expected one number, or one for each of three channels")
    try:
        return tuple(map(_number, parts))
    except (ValueError, ZeroDivisionError):
        raise BadArgument(option, text, "expected numbers such as 0.485 or 1/255") from None


def _number(text: str) -> float:
    """A mean may be 0 or below."""
    above, slash, below = text.partition("/")
    number = float(above) / float(below) if slash else float(above)
    if not isfinite(number):
        raise ValueError(text)
    return number


def count(text: str) -> int | str:
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise BadArgument("images", text, "expected a number from 1, or all")
    return text if text == "all" else int(text)


def classes(text: str | None) -> list[str] | None:
    if text is None:
        return None
    if not _is_file(text):
        return [name.strip() for name in text.split(",")]
    written = Path(text).read_text(encoding="utf-8-sig").strip()
    return [str(n) for n in json.loads(written)] if written.startswith("[") else written.splitlines()


def _is_file(text: str) -> bool:
    """A list of many names is too long for one."""
    try:
        return Path(text).is_file()
    except OSError:
        return False
