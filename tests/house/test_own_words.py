"""The library speaks of its own arguments: who sets them, and in what file, it does not know."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from stages.common.params import Params
from tests.house.imports import ROOT

SECTIONS = "|".join(name for name in Params.model_fields if name != "seed")
FOREIGN = re.compile(rf"\b({SECTIONS})\.[a-z_]+\b(?!\()|\bdvc\b|params\.yaml|AUTOLORA_", re.IGNORECASE)
FILES = re.compile(r"[\w/]+\.(py|pkl|npy|json|pt|safetensors|bin|png|stat|max)\b")
PACKAGES = sorted(p.name for p in (ROOT / "autolora").iterdir() if p.is_dir() and p.name != "__pycache__")


def texts(file: Path) -> list[tuple[int, str]]:
    """What may be shown to somebody: every string but the docstrings; `some` where an f-string has a value."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            said |= {id(part) for part in node.values}
            found.append(
                (
                    node.lineno,
                    "".join(
                        getattr(part, "value", "") if isinstance(part, ast.Constant) else "some" for part in node.values
                    ),
                )
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            found.append((node.lineno, node.value))
    return found


def foreign(text: str) -> list[str]:
    return [found[0] for found in FOREIGN.finditer(FILES.sub("", text)) if "autolora." not in text]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_library_names_its_own_arguments(package):
    found = {
        f"{file.relative_to(ROOT)}:{line} {words}"
        for file in sorted((ROOT / "autolora" / package).rglob("*.py"))
        for line, text in texts(file)
        if (words := foreign(text))
    }
    assert not found


def test_a_key_that_is_put_together_is_seen(tmp_path):
    (tmp_path / "x.py").write_text("raise ValueError(f'finetune.{key} is {value}')")
    assert [foreign(text) for _, text in texts(tmp_path / "x.py")] == [["finetune.some"]]


@pytest.mark.parametrize(
    "text", ["finetune.epochs is 0", "run `dvc repro`", "set in params.yaml", "put AUTOLORA_WORK elsewhere"]
)
def test_what_the_library_must_not_say_is_seen(text):
    assert foreign(text)
