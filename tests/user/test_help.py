"""`--help` of every module that is run by hand says what it reads, writes and may be told, and runs nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.imports import AROUND, FLOORS, ROOT, sources
from tests.user import from_one
from tests.user.clone import Clone

# They import nothing of ours (one is copied to where the model is asked, one is started by its path): plain argparse.
ALONE = {"deploy.client", "pipelines.execution.process_guard"}


def run_by_hand() -> list[str]:
    found = set()
    for file in (f for floor in (*FLOORS, *AROUND) for f in sources(floor)):
        if file.name == "__main__.py":
            found.add(".".join(file.parent.parts))
        elif _is_run(ROOT / file):
            found.add(".".join(file.with_suffix("").parts))
    return sorted(found)


def _is_run(file: Path) -> bool:
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    return any(isinstance(s, ast.If) and ast.unparse(s.test) == "__name__ == '__main__'" for s in statements)


MODULES = run_by_hand()
of_each = pytest.mark.parametrize("module", MODULES)


@pytest.fixture(scope="module")
def said(untouched: Clone) -> dict[tuple[str, str], tuple[int, str, str]]:
    """(module, argument) -> (exit code, stdout, stderr). The large imports are paid once, and not by each of them."""
    calls = [(module, argument) for module in MODULES for argument in ("--help", "--hepl")]
    done = subprocess.run(
        [sys.executable, from_one.__file__], input=json.dumps(calls), cwd=untouched.folder, env=untouched.environment(),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(zip(calls, json.loads(done.stdout), strict=True))


def test_all_are_there():
    stages = {
        f"stages.{name}" for name in ("prepare", "validate", "finetune", "merge", "evaluate", "export", "register")
    }
    assert stages | {"stages.card", "autolora.export", "pipelines.promote", "tools.pretrain"} <= set(MODULES)
    assert "stages.common.command_line" not in MODULES  # its docstring shows how a stage calls it


@of_each
def test_help_says_what_it_reads_and_writes(said, module):
    code, out, err = said[module, "--help"]
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: python -m {module}" if module not in ALONE else "usage: ")
    if module not in ALONE:
        assert {"reads", "writes"} <= {line.partition(" ")[0] for line in out.splitlines()}


@of_each
def test_an_unknown_argument_is_refused_with_the_nearest_known_one(said, module):
    code, _, err = said[module, "--hepl"]
    assert code == 2
    if module not in ALONE:
        assert err.startswith(f"python -m {module}: ")
        assert "there is no argument --hepl: did you mean --help?" in err


def test_none_of_them_runs_anything(said, untouched):
    assert untouched.changed() == ""


def test_the_nearest(untouched):
    refused = untouched.run("python", "-m", "benchmarks.cluster_estimate", "--gpu", "64")
    assert "there is no argument --gpu: did you mean --gpus?" in refused.stderr
    refused = untouched.run("python", "-m", "stages.prepare", "data/raw")
    assert "python -m stages.prepare: there is no argument data/raw: it takes --help, -h" in refused.stderr
