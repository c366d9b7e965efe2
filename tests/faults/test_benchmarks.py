"""No benchmark is left behind when the house moves: all that they import from it is there."""

from __future__ import annotations

import ast
import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest

HOUSE = ("autolora", "stages", "pipelines", "tools", "deploy", "benchmarks")
BENCHMARKS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


def missing(file: Path) -> list[str]:
    """Names that a module imports, also inside functions, and that nobody has."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in HOUSE:
            continue
        found += [f"{node.module}.{name.name}" for name in node.names if not there(node.module, name.name)]
    return found


def there(package: str | None, name: str) -> bool:
    """Is it a module of the package, or what a lazy package gives out?"""
    module = importlib.import_module(package or "")
    return hasattr(module, name) or (hasattr(module, "__path__") and find_spec(f"{package}.{name}") is not None)


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file: Path) -> None:
    assert missing(file) == []


def test_a_name_that_is_gone_is_missed(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(
        "from autolora.data.batches import take, gone\nfrom pipelines.sweeps import grid\n"
    )
    assert missing(tmp_path / "old.py") == ["autolora.data.batches.gone"]
