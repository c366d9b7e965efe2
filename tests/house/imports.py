"""The import graph of the repository, read from the source: who imports what, also inside functions."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("autolora", "stages", "pipelines")
AROUND = ("tools", "benchmarks", "deploy")  # stand on the floors; nothing stands on them


def module_file(name: str) -> Path | None:
    """The file of one of our own modules, relative to the repository; packages give their __init__.py."""
    if name.split(".")[0] not in FLOORS + AROUND:
        return None
    path = Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


@cache
def imported_names(file: Path) -> frozenset[str]:
    """Every dotted name that a file imports; `from a import b` gives both a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def own_imports(file: Path) -> set[Path]:
    """A package's __init__.py is read on the way to its modules, and holds no code: it is not among them."""
    files = {module_file(name) for name in imported_names(file)}
    return {f for f in files if f is not None and f.name != "__init__.py"}


def closure(file: Path, without: frozenset[Path] = frozenset()) -> set[Path]:
    """The file and all of ours that it reaches by imports; what is in `without` is neither listed nor entered."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in found or current in without:
            continue
        found.add(current)
        waiting += own_imports(current)
    return found


def sources(floor: str) -> list[Path]:
    return sorted(p.relative_to(ROOT) for p in (ROOT / floor).rglob("*.py"))
