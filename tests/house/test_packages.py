"""The rooms: what stands at the front of each floor, which package may import which, and what an __init__.py holds."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.imports import FLOORS, ROOT, own_imports, sources
from tests.house.test_graph import STAGES

FRONT = {
    "autolora": {"threat", "__main__"},
    "stages": set(STAGES),
    "pipelines": {"rebuild", "sweep", "promote", "deploy"},
}
# Each package imports only what stands before it in its line; packages of one line that do not meet share a place.
ORDER = {
    "autolora": [
        ["common"],
        ["."],  # threat.py
        ["backbones", "data", "corruptions"],
        ["export/operators"],
        ["export"],
        ["attacks/engine"],
        ["attacks"],
        ["training"],
        ["command"],
    ],
    "stages": [
        ["common"],
        ["work"],
        ["evidence"],
        ["card"],
        ["tracking"],
        ["dataset", "evaluation"],
        ["estimate"],
        ["merging"],
        ["."],
    ],
    "pipelines": [["execution"], ["workspace"], ["sweeps", "registry"], ["."]],
}
# What runs at import of a floor: the public names, fetched at first use; no telemetry, before Prefect is imported.
# And the door of the command line, which stands at the front and leads to the last room.
WITH_CODE = {Path("autolora/__init__.py"), Path("pipelines/__init__.py"), Path("autolora/__main__.py")}
PUBLIC_FUNCTIONS = {"finetune", "merge", "autoattack", "export_onnx", "load_backbone"}


@pytest.mark.parametrize("floor", FLOORS)
def test_the_front_shows_what_the_floor_is_for(floor):
    assert {p.stem for p in (ROOT / floor).glob("*.py")} - {"__init__"} == FRONT[floor]


@pytest.mark.parametrize("floor", FLOORS)
def test_every_package_has_its_place(floor):
    found = {str(p.parent.relative_to(floor)) for p in sources(floor)}
    assert found == {name for level in ORDER[floor] for name in level}


@pytest.mark.parametrize("floor", FLOORS)
def test_packages_import_what_stands_below(floor):
    place = {name: i for i, level in enumerate(ORDER[floor]) for name in level}
    wrong = []
    for file in set(sources(floor)) - WITH_CODE:  # what the public names are, for mypy
        here = str(file.parent.relative_to(floor))
        for other in own_imports(file):
            there = str(other.parent.relative_to(floor)) if other.parts[0] == floor else None
            if there is not None and there != here and place[there] >= place[here]:
                wrong.append(f"{file} imports {other}")
    assert not wrong


def inits() -> list[Path]:
    return [p for floor in (*FLOORS, "tools") for p in sources(floor) if p.name == "__init__.py"]


@pytest.mark.parametrize("file", inits(), ids=str)
def test_an_init_is_a_docstring(file):
    """The import closure, which dvc.yaml's deps are, reads no code there."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    said = ast.get_docstring(tree)
    assert said, "what lives here, what does not, what it may import"
    if file in WITH_CODE:
        return
    assert len(tree.body) == 1
    if len(file.parts) == 3 or file.parts[1:2] == ("attacks",):
        assert "Not here: " in said
        assert "May import: " in said


@pytest.mark.parametrize("file", [file for file in inits() if "May import: " in (ROOT / file).read_text()], ids=str)
def test_an_init_says_what_its_room_imports(file):
    """All of it, and nothing else: rooms of its own floor by name, a floor below as a whole."""
    (said,) = re.findall(r"^May import: (.+)\.$", (ROOT / file).read_text(), re.MULTILINE)
    names = (
        set() if said == "nothing of ours" else {name.removeprefix(f"{file.parts[0]}.") for name in said.split(", ")}
    )
    others = {other for source in (ROOT / file).parent.glob("*.py") for other in own_imports(source.relative_to(ROOT))}
    assert names == {room for other in others if (room := room_of(other, file.parts[0])) != file.parts[1]}


def room_of(module: Path, floor: str) -> str:
    return Path(module.parts[1]).stem if module.parts[0] == floor else module.parts[0]


def test_no_room_hides_a_public_function():
    """Importing autolora.merge as a module would put the module where the function was."""
    children = {p.stem for p in (ROOT / "autolora").glob("*.py")} | {p.name for p in (ROOT / "autolora").iterdir()}
    assert not children & PUBLIC_FUNCTIONS


def test_rooms_are_small():
    long = {
        str(f): n for floor in FLOORS for f in sources(floor) if (n := len((ROOT / f).read_text().splitlines())) > 400
    }
    assert not long
