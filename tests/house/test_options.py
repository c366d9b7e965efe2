"""`--help` is silent about no argument: each one that a command of ours takes has a line of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house.imports import FLOORS, ROOT, sources


def silent(source: str) -> list[str]:
    """The arguments that are added without a word on what they are."""
    return [
        ast.unparse(node.args[0])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "add_argument"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and not any(given.arg == "help" for given in node.keywords)
    ]


@pytest.mark.parametrize("floor", FLOORS)
def test_each_argument_has_a_line_of_help(floor):
    files: list[Path] = [ROOT / file for file in sources(floor)]
    assert files
    said = {str(file.relative_to(ROOT)): silent(file.read_text(encoding="utf-8")) for file in files}
    assert {name: found for name, found in said.items() if found} == {}


def test_an_argument_without_help_is_seen():
    assert silent("parser.add_argument('--seed', type=int)\nparser.add_argument('--eps', help='the radius')") == [
        "'--seed'"
    ]
