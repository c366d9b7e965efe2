"""Where a clone is, seen from the temporary copies that DVC and git make of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stages.common.clone import clone_of
from stages.common.runner import work_root
from stages.tracking.client import artifact_location, tracking_uri


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AUTOLORA_WORK", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "clone"
    git(tmp_path, "init", "--quiet", "clone")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.email=test@example.org", "-c", "user.name=test"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(params=["worktree", "worktree inside", "dvc exp run --temp", "--temp in a worktree"])
def copy(request: pytest.FixtureRequest, clone: Path, tmp_path: Path) -> Path:
    """As git and DVC lay them out."""
    folder = {
        "worktree": tmp_path / "elsewhere",
        "worktree inside": clone / ".work/workspaces/one",
        "dvc exp run --temp": clone / ".dvc/tmp/exps/standalone/tmpabc",
        "--temp in a worktree": tmp_path / "elsewhere/.dvc/tmp/exps/tmpabc",
    }[request.param]
    if "worktree" in request.param:
        git(clone, "worktree", "add", str(folder if "--temp" not in request.param else tmp_path / "elsewhere"))
    folder.mkdir(parents=True, exist_ok=True)
    if "--temp" in request.param:
        git(folder, "init", "--quiet")
    return folder


def test_what_must_outlive_a_copy_lies_in_the_clone(clone, copy, monkeypatch):
    monkeypatch.chdir(copy)
    assert clone_of() == clone.resolve()
    assert work_root() == clone / ".work"
    assert tracking_uri() == f"sqlite:///{clone}/mlflow.db"
    assert artifact_location() == f"{clone}/mlruns/autolora"


def test_a_relative_address_is_meant_in_the_clone_and_others_stay(clone, copy, monkeypatch):
    monkeypatch.chdir(copy)
    monkeypatch.setenv("AUTOLORA_WORK", "progress")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert (work_root(), tracking_uri()) == (clone / "progress", f"sqlite:///{clone}/mine.db")
    for uri in ("sqlite:////srv/mlflow.db", "http://mlflow:5000"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert tracking_uri() == uri
    assert artifact_location() is None  # a server knows its own place


@pytest.mark.parametrize("inside", [".", "stages"])
def test_in_the_clone_nothing_changes(clone, inside, monkeypatch):
    (clone / inside).mkdir(exist_ok=True)
    monkeypatch.chdir(clone / inside)
    assert clone_of() == clone / inside
    assert (work_root(), tracking_uri(), artifact_location()) == (Path(".work"), "sqlite:///mlflow.db", None)


def test_a_submodule_is_a_clone_of_its_own(clone, tmp_path):
    folder = tmp_path / "outer/inner"
    folder.mkdir(parents=True)
    (folder / ".git").write_text("gitdir: ../.git/modules/inner\n")
    assert clone_of(folder) == folder
