"""What a function asks for: few things by position, no bare True or False, and no `Any` where a type exists."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.house.imports import ROOT, sources

MOST, MOST_OF_THE_PUBLIC = 6, 4
PUBLIC = {"Threat", "load_backbone", "finetune", "merge", "autoattack", "black_box", "eps_curve", "export_onnx"}
TYPED = {"params", "mlflow", "client"}
FLOORS = ("autolora", "stages", "pipelines")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(floor: str) -> Iterator[tuple[str, Function]]:
    for file in sources(floor):
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{file}:{node.lineno} {node.name}", node


def positional(function: Function) -> list[ast.arg]:
    named = [*function.args.posonlyargs, *function.args.args]
    return named[1:] if named and named[0].arg in ("self", "cls") else named


def flags(function: Function) -> list[str]:
    """Parameters by position that are a bare True or False."""
    named = [*function.args.posonlyargs, *function.args.args]
    defaults: list[ast.expr | None] = [None] * (len(named) - len(function.args.defaults)) + function.args.defaults
    return [
        one.arg
        for one, default in zip(named, defaults)
        if (isinstance(default, ast.Constant) and isinstance(default.value, bool))
        or (one.annotation is not None and ast.unparse(one.annotation) == "bool")
    ]


@pytest.mark.parametrize("floor", FLOORS)
def test_few_parameters_by_position(floor):
    many = {name: len(positional(node)) for name, node in functions(floor) if len(positional(node)) > MOST}
    assert not many, f"more than {MOST} by position: {many}"


@pytest.mark.parametrize("floor", FLOORS)
def test_no_flag_by_position(floor):
    found = {name: flags(node) for name, node in functions(floor) if flags(node)}
    assert not found, f"write `*, {{name}}: bool`: {found}"


@pytest.mark.parametrize("floor", FLOORS)
def test_what_has_a_type_is_not_any(floor):
    found = {
        f"{name}({one.arg})"
        for name, node in functions(floor)
        for one in [*positional(node), *node.args.kwonlyargs]
        if one.arg in TYPED and one.annotation is not None and ast.unparse(one.annotation) in ("Any", "Any | None")
    }
    assert not found


def test_the_public_surface_is_called_by_keyword():
    """Beyond the network, the images, their labels and the threat, everything has a name at the call."""
    for name, node in functions("autolora"):
        if node.name in PUBLIC:
            assert len(positional(node)) <= MOST_OF_THE_PUBLIC, name
