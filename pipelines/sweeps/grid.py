"""A sweep as a small YAML: axes, what is averaged over, and which value the others are compared with.

stages: [evaluate]                 # how far each cell goes
first: validate                    # done once for all cells that share it, before they fan out
grid:
  data:                            # a mapping: each name stands for a preset and/or overrides
    CIFAR-10: {preset: presets/cifar10.yaml}
    DTD: {preset: presets/dtd.yaml, evaluate.images: 1000}
  finetune.method: [autolora, vanilla, twins]        # a list: values of one key of params.yaml
  seed: [0, 1, 2]
over: seed
baseline: {finetune.method: vanilla}
search:                            # what these values of an axis need first: the best of a key by validation
  axis: finetune.method
  values: [vanilla]
  key: finetune.rate
  tries: [0.003, 0.01, 0.03]
  at: {seed: 0}                    # tried here alone, for all seeds
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pipelines.workspace.worktree import slug
from stages.common.yaml_text import NotYaml, parsed, short

COLUMNS = [
    "n",
    "clean",
    "clean_sd",
    "robust",
    "robust_sd",
    "difference",
    "p_images",
    "p_seeds",
    "missing",
]  # of the table
KEYS = {"stages", "first", "grid", "over", "baseline", "title", "search"}
PRESETS = Path("presets") / "sweeps"


class GridError(ValueError):
    pass


@dataclass(frozen=True)
class Cell:
    axes: dict[str, str]  # {"data": "DTD", "finetune.method": "vanilla", "seed": "0"}
    preset: str | None
    overrides: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict)  # by a search; no part of the name

    def name(self) -> str:
        """Readable, and different for cells that differ in what an axis stands for."""
        return f"{slug('-'.join(self.axes.values()))}-{self.digest()}"

    def digest(self) -> str:
        value = json.dumps([self.axes, self.preset, self.overrides], sort_keys=True, default=str)
        return hashlib.sha256(value.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Search:
    """Cells with one of `values` on `axis` get the best of `tries` for `key`, as validation sees them in cells `at`."""

    axis: str
    values: list[str]
    key: str
    tries: list[Any]
    at: dict[str, str]


@dataclass(frozen=True)
class Sweep:
    name: str
    title: str
    stages: list[str]
    first: str | None
    axes: dict[str, list[str]]
    over: str | None
    baseline: dict[str, str]
    cells: list[Cell]
    search: Search | None = None


def load(name_or_file: str, folder: Path) -> Sweep:
    """`paper-table` is presets/sweeps/paper-table.yaml; any other path is a file."""
    file = folder / PRESETS / f"{name_or_file}.yaml"
    if not file.is_file():
        file = folder / name_or_file
    if not file.is_file():
        known = sorted(path.stem for path in (folder / PRESETS).glob("*.yaml"))
        raise GridError(
            f"there is no sweep {name_or_file!r}: there are {', '.join(known) or 'none'}, or give a YAML file"
        )
    try:
        return parse(parsed(file.read_bytes()), file.stem)
    except NotYaml as error:
        raise GridError(f"sweep {file.name} {error}") from None


def parse(content: Any, name: str) -> Sweep:
    if not isinstance(content, dict) or not isinstance(content.get("grid"), dict) or not content["grid"]:
        raise GridError(f"sweep {name}: expected a mapping with `grid`, as in pipelines/sweeps/grid.py")
    if unknown := set(content) - KEYS:
        raise GridError(
            f"sweep {name}: unknown key {_listed(sorted(map(str, unknown)))}: allowed are {_listed(sorted(KEYS))}"
        )
    _refuse_types(name, content)
    axes = {str(axis): _values(name, str(axis), values) for axis, values in content["grid"].items()}
    if taken := sorted(set(axes) & set(COLUMNS)):
        raise GridError(
            f"sweep {name}: an axis is called {_listed(taken)}: that is a column of the table, name it otherwise"
        )
    over, baseline = content.get("over"), {str(k): str(v) for k, v in (content.get("baseline") or {}).items()}
    for axis in [*([over] if over else []), *baseline]:
        _refuse_unknown(name, axis, axes)
    for axis, value in baseline.items():
        _refuse_value(name, "baseline", axis, value, axes)
    if over in baseline:
        raise GridError(f"sweep {name}: {short(str(over))} is averaged over, so no value of it can be the baseline")
    cells = [_cell(axes, chosen) for chosen in itertools.product(*axes.values())]
    _refuse_overwritten(name, content["grid"], cells)
    return Sweep(
        name,
        content.get("title") or name,
        list(content.get("stages") or ["evaluate"]),
        content.get("first"),
        {axis: list(values) for axis, values in axes.items()},
        over,
        baseline,
        cells,
        _search(name, content.get("search"), axes),
    )


def _refuse_overwritten(name: str, axes: Mapping[str, Any], cells: Iterable[Cell]) -> None:
    """A cell that runs with another value than its label says."""
    for axis in (str(axis) for axis, values in axes.items() if isinstance(values, list)):
        for cell in cells:
            if (value := str(cell.overrides[axis])) != cell.axes[axis]:
                said = f"a later axis sets {short(axis)} to {short(value)}, and its own says {cell.axes[axis]}"
                raise GridError(f"sweep {name}: {said}")


def _refuse_unknown(name: str, axis: str, axes: Iterable[str]) -> None:
    if axis not in axes:
        raise GridError(f"sweep {name}: {short(axis)} is no axis of the grid: the axes are {_listed(axes)}")


def _refuse_value(name: str, what: str, axis: str, value: str, axes: Mapping[str, Iterable[str]]) -> None:
    if value not in axes[axis]:
        raise GridError(f"sweep {name}: {what} {short(axis)} is {short(value)}: the grid has {_listed(axes[axis])}")


def _search(name: str, content: Any, axes: Mapping[str, Iterable[str]]) -> Search | None:
    if content is None:
        return None
    kinds = {field.name: str if field.name in ("axis", "key") else list for field in fields(Search)} | {"at": dict}
    if not isinstance(content, dict) or set(content) != set(kinds):
        raise GridError(f"sweep {name}: search is {short(repr(content))}: expected {', '.join(kinds)}")
    for key, kind in kinds.items():
        if not isinstance(content[key], kind) or not content[key]:
            raise GridError(f"sweep {name}: search.{key} is {short(repr(content[key]))}: expected a {kind.__name__}")
    at = {str(axis): str(value) for axis, value in content["at"].items()}
    asked = [(content["axis"], str(value)) for value in content["values"]] + list(at.items())
    for axis, value in asked:
        _refuse_unknown(name, axis, axes)
        _refuse_value(name, "search", axis, value, axes)
    if content["axis"] in at:
        raise GridError(
            f"sweep {name}: search.at moves {short(content['axis'])}, which is the axis that is searched for"
        )
    if content["key"] in axes:
        raise GridError(f"sweep {name}: search.key is {short(content['key'])}, which is an axis of the grid")
    return Search(content["axis"], [str(value) for value in content["values"]], content["key"], content["tries"], at)


def _listed(names: Iterable[str]) -> str:
    return short(", ".join(names))


def _refuse_types(name: str, content: dict[str, Any]) -> None:
    """Every key but `grid`, whose axes are looked at one by one."""
    for key, kind, what in (
        ("over", str, "the name of an axis"),
        ("first", str, "the name of a stage"),
        ("title", str, "a text"),
        ("baseline", dict, "a mapping from axes to values"),
        ("stages", list, "a list of stages"),
    ):
        value = content.get(key)
        if value is not None and not isinstance(value, kind):
            raise GridError(f"sweep {name}: {key} is {short(repr(value))}: expected {what}")
    if not all(isinstance(stage, str) for stage in content.get("stages") or []):
        raise GridError(f"sweep {name}: stages is {short(repr(content['stages']))}: expected a list of stages")


def _values(name: str, axis: str, values: Any) -> dict[str, dict[str, Any]]:
    if isinstance(values, list) and values:
        if len({str(value) for value in values}) < len(values):
            raise GridError(f"sweep {name}: axis {short(axis)} is {short(repr(values))}: a value stands there twice")
        return {str(value): {axis: value} for value in values}
    if isinstance(values, dict) and values and all(map(_are_overrides, values.values())):
        return {str(key): value for key, value in values.items()}
    raise GridError(
        f"sweep {name}: axis {short(axis)} is {short(repr(values))}: expected a list of values, or names with overrides"
    )


def _are_overrides(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(key, str) for key in value)
        and isinstance(value.get("preset", ""), str)
    )


def _cell(axes: Mapping[str, Mapping[str, dict[str, Any]]], chosen: tuple[str, ...]) -> Cell:
    overrides: dict[str, Any] = {}
    for axis, value in zip(axes, chosen, strict=True):
        overrides |= axes[axis][value]
    preset = overrides.pop("preset", None)
    return Cell(dict(zip(axes, chosen, strict=True)), preset, overrides)
