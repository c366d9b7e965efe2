"""A recipe is a paper in a few words: values of `finetune` and `merge`, in presets/recipes/NAME.yaml.

finetune.recipe: awp2020 fills in what params.yaml leaves at its default; what it sets otherwise stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from autolora.common.command_line import nearest
from stages.common.errors import StageError
from stages.common.yaml_text import NotYaml, parsed, short

FOLDER = Path(__file__).resolve().parents[2] / "presets" / "recipes"
SECTIONS = ("finetune", "merge")
NONE = "none"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe(name: str) -> dict[str, dict[str, Any]]:
    if name not in names():
        near = nearest(name, names())
        meant = f"did you mean {near}? " if near else ""
        raise StageError(f"finetune.recipe is {short(repr(name))}: {meant}there are {', '.join(names())}")
    file = FOLDER / f"{name}.yaml"
    try:
        content = parsed(file.read_bytes())
    except NotYaml as error:
        raise StageError(f"presets/recipes/{file.name} {error}") from None
    if not isinstance(content, dict) or not set(content) <= set(SECTIONS):
        raise StageError(f"presets/recipes/{file.name}: expected the sections {' and '.join(SECTIONS)}, and no others")
    return content


def in_one_line(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {NONE if value is None else value}" for key, value in values.items())


def words(name: str) -> str:
    """What the comment at the top of its file says."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


def set_otherwise(name: str, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What params.yaml has in place of the recipe's own."""
    return {key: values[key] for key, value in recipe(name).get(section, {}).items() if values[key] != value}


def with_recipe(content: Any, models: Mapping[str, type[BaseModel]]) -> Any:
    """The content of a params.yaml, with the values of the recipe that it names. `models` know the defaults."""
    asked = content.get("finetune") if isinstance(content, dict) else None
    name = asked.get("recipe") if isinstance(asked, dict) else None
    if not isinstance(name, str) or name == NONE:
        return content
    filled = dict(content)
    for section, values in recipe(name).items():
        fields, written = models[section].model_fields, content.get(section) or {}
        if not isinstance(written, dict):
            continue  # which is said by whoever checks it
        own = {k: v for k, v in written.items() if k not in fields or not _at(fields[k].default, v)}
        filled[section] = written | values | own
    return filled


def _at(default: Any, value: Any) -> bool:
    """Nothing has two spellings."""
    return bool(value == default) or (default is None and value == NONE)
