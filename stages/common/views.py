"""For each stage the keys of params.yaml that dvc.yaml declares for it, and no others; a test compares the two.

params = load(MergeParams);  params.threat;  params.merge.alpha;  params.export  ->  no such attribute
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel

from autolora.threat import Threat
from stages.common.params import (
    Backbone,
    Evaluate,
    Export,
    Finetune,
    ImageSize,
    Judged,
    Merge,
    Prepared,
    Register,
    Section,
    ThreatSection,
    check,
)


@dataclass(frozen=True)
class View:
    """What one stage sees."""

    def as_dict(self) -> dict[str, Any]:
        """By declared key, {"seed": 0, "threat": {...}, ...}: the stage's part of a work key."""
        return {
            key: _plain(getattr(self, section) if name is None else getattr(getattr(self, section), name))
            for key, (section, name) in declared(type(self)).items()
        }


@dataclass(frozen=True)
class PrepareParams(View):
    seed: int
    data: Prepared


@dataclass(frozen=True)
class ValidateParams(View):
    seed: int
    data: Judged


@dataclass(frozen=True)
class FinetuneParams(View):
    seed: int
    data: ImageSize
    backbone: Backbone
    threat: Threat
    finetune: Finetune


@dataclass(frozen=True)
class MergeParams(View):
    seed: int
    threat: Threat
    finetune: Finetune
    merge: Merge


@dataclass(frozen=True)
class EvaluateParams(View):
    seed: int
    threat: Threat
    evaluate: Evaluate


@dataclass(frozen=True)
class ExportParams(View):
    seed: int
    threat: Threat
    export: Export


@dataclass(frozen=True)
class RegisterParams(View):
    register: Register


VIEWS: dict[str, type[View]] = {
    "prepare": PrepareParams,
    "validate": ValidateParams,
    "finetune": FinetuneParams,
    "merge": MergeParams,
    "evaluate": EvaluateParams,
    "export": ExportParams,
    "register": RegisterParams,
}
V = TypeVar("V", bound=View)


def load(view: type[V], folder: str | Path = ".") -> V:
    """The stage's view of a checked params.yaml."""
    params = check(Path(folder) / "params.yaml")
    return view(**{name: _narrowed(getattr(params, name), kind) for name, kind in _parts(view).items()})


def declared(view: type[View]) -> dict[str, tuple[str, str | None]]:
    """DVC's keys of a view, each with its section and, where the stage sees only part of that, its name in there."""
    found: dict[str, tuple[str, str | None]] = {}
    for section, kind in _parts(view).items():
        if kind is ImageSize or kind in (Prepared, Judged):
            found |= {f"{section}.{name}": (section, name) for name in kind.model_fields}
        else:
            found[section] = (section, None)
    return found


def key_of(stage: str, argument: str) -> str:
    """The key of params.yaml that gives the library this argument in this stage; the argument where none does."""
    for section, kind in _parts(VIEWS[stage]).items() if stage in VIEWS else ():
        names = getattr(ThreatSection if kind is Threat else kind, "model_fields", {})
        if argument in names:
            return f"{section}.{argument}"
    return argument


def _parts(view: type[View]) -> dict[str, Any]:
    hints = get_type_hints(view)
    return {field.name: hints[field.name] for field in fields(view)}


def _narrowed(value: Any, kind: Any) -> Any:
    """A section without the keys that the stage does not see."""
    if not isinstance(value, Section) or type(value) is kind:
        return value
    return kind.model_construct(**{name: getattr(value, name) for name in kind.model_fields})


def _plain(value: Any) -> Any:
    if isinstance(value, Threat):
        return {"norm": value.norm, "eps": value.eps_text}
    return value.model_dump() if isinstance(value, BaseModel) else value
