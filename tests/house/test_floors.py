"""Three floors, arrows only down; the library knows nothing of the tools around it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house.imports import AROUND, FLOORS, ROOT, imported_names, sources

# The upper floors, and what stands around the house, are closed to everybody on a floor.
MAY_NOT = {
    "autolora": {
        "stages",
        "pipelines",
        "dvc",
        "mlflow",
        "prefect",
        "great_expectations",
        "pandas",
        "pydantic",
        "sklearn",
    },
    "stages": {"pipelines", "prefect"},
    "pipelines": {"torch", "torchvision", "timm"},
    "benchmarks": {"tests"},
    "deploy": {"tests", "benchmarks", "tools"},
    "tools": {"tests", "benchmarks"},
}


@pytest.mark.parametrize("floor", MAY_NOT)
def test_arrows_go_down(floor):
    closed = MAY_NOT[floor] | ({*AROUND, "tests"} if floor in FLOORS else set())
    wrong = {
        f"{file} imports {name}"
        for file in sources(floor)
        for name in imported_names(file)
        if name.split(".")[0] in closed
    }
    assert not wrong


def test_importing_the_library_imports_no_torch():
    """`import autolora` is lazy: a stage depends only on the rooms that it enters."""
    code = "import sys, autolora; dir(autolora); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_public_surface_is_there():
    import autolora

    for name in ("Threat", "load_backbone", "finetune", "merge", "autoattack", "export_onnx"):
        assert callable(getattr(autolora, name))
    with pytest.raises(AttributeError, match="no attribute 'finetun'"):
        autolora.finetun  # noqa: B018
