"""`--help` of every module that is run by hand says what it reads, writes and may be told, and runs nothing.

And the pages tell it nothing else.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from tests.house.imports import AROUND, FLOORS, ROOT, sources
from tests.house.pages import PAGES, commands, without_settings
from tests.user.clone import Clone

pytestmark = pytest.mark.slow
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
    """(module, argument) -> (exit code, stdout, stderr)."""
    found = {}
    for module in MODULES:
        for argument in ("--help", "--hepl"):
            done = untouched.run("python", "-m", module, argument)
            found[module, argument] = done.returncode, done.stdout, done.stderr
    return found


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


# --- what the pages tell them -----------------------------------------------------------------------------------------

OURS = re.compile(r"^(autolora|stages|pipelines|benchmarks|tools|deploy|tests)\.")


def documented() -> dict[str, list[tuple[str, ...]]]:
    """For each module of ours: what it is told on the pages."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for page in PAGES:
        for command in commands(page):
            words = without_settings(command)
            if words[:4] == ["uv", "run", "python", "-m"] and OURS.match(words[4]):
                found.setdefault(words[4], []).append(tuple(words[5:]))
    return found


DOCUMENTED = documented()


def test_modules_are_found_in_the_docs():
    assert {"pipelines.promote", "pipelines.deploy", "benchmarks.onnx_speed", "stages.card"} <= set(DOCUMENTED)


@pytest.fixture(scope="module")
def helped(said, untouched):
    """A function: the help of a module, or of a subcommand of it."""

    def text(*words: str) -> str:
        if words not in found:
            done = untouched.run("python", "-m", *words, "--help")
            assert done.returncode == 0, done.stderr
            found[words] = done.stdout
        return found[words]

    found = {(module,): said[module, "--help"][1] for module in MODULES}
    return text


@pytest.mark.parametrize("module", [module for module, told in DOCUMENTED.items() if "--" in str(told)])
def test_documented_options_are_known(helped, module):
    text = helped(module)
    for words in DOCUMENTED[module]:
        subcommand = words[:1] if words and re.search(rf"[{{,]{re.escape(words[0])}[,}}]", text) else ()
        known = set(re.findall(r"--[\w-]+", text + (helped(module, *subcommand) if subcommand else "")))
        told = {word.partition("=")[0] for word in shlex.split(" ".join(words).translate({91: None, 93: None}))}
        assert {word for word in told if word.startswith("--")} <= known, words
