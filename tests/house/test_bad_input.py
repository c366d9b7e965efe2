"""What a user gets wrong stops the stage with one line: what, where, what to do; nothing half-written stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.house.imports import ROOT

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what git tracks (and of what it would), with an empty DVC cache."""
    folder = tmp_path / "checkout"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for command in ("git init -q .", "git add -A", "git -c user.name=t -c user.email=t@t commit -qm start"):
        subprocess.run(command.split(), cwd=folder, check=True)
    return folder


def run(folder, *command):
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def set_param(folder, key, value):
    tree = yaml.safe_load((folder / "params.yaml").read_text())
    section, name = key.split(".")
    tree[section][name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("stage", "key", "value", "words"),
    [
        ("prepare", "data.source", "cifar11", ["data.source", "cifar11", "cifar10"]),
        ("prepare", "data.image_sise", 32, ["data.image_sise", "unknown", "image_size"]),
        ("prepare", "threat.eps", 8, ["threat.eps", "8/255"]),
    ],
)
def test_a_fault_in_params_stops_before_anything_runs(checkout, stage, key, value, words):
    set_param(checkout, key, value)
    result = run(checkout, sys.executable, "-m", f"stages.{stage}")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
def test_a_missing_weights_file_and_an_unknown_backbone(checkout):
    assert run(checkout, "dvc", "repro", "validate").returncode == 0
    set_param(checkout, "backbone.weights", "models/pretrained/none.safetensors")
    result = run(checkout, sys.executable, "-m", "stages.finetune")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "models/pretrained/none.safetensors" in result.stderr
    shutil.copyfile(ROOT / "params.yaml", checkout / "params.yaml")
    set_param(checkout, "backbone.arch", "resnet10q")
    result = run(checkout, sys.executable, "-m", "stages.finetune")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "resnet10q" in result.stderr
    assert "resnet10t" in result.stderr  # what was probably meant


@pytest.mark.slow
def test_a_failed_stage_loses_nothing(checkout):
    """A failure, `dvc checkout` for the previous outputs, the fault mended: the pipeline goes on."""
    assert run(checkout, "dvc", "repro", "prepare").returncode == 0
    manifest = (checkout / "data" / "manifest.csv").read_bytes()
    right = (checkout / "params.yaml").read_text()
    set_param(checkout, "data.source", "folder")  # data/raw holds no images
    failed = run(checkout, "dvc", "repro", "prepare")
    assert failed.returncode != 0
    assert "data/raw" in failed.stderr
    assert "Traceback" not in failed.stderr
    (checkout / "params.yaml").write_text(right)
    assert run(checkout, "dvc", "checkout", "prepare").returncode == 0
    assert (checkout / "data" / "manifest.csv").read_bytes() == manifest
    assert "up to date" in run(checkout, "dvc", "repro", "prepare").stdout


@pytest.mark.slow
def test_a_full_disk_is_named(checkout):
    """data/ on a file system of 256 KB."""
    kept = {p.name: p.read_bytes() for p in (checkout / "data" / "raw").iterdir()}
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(checkout / "data")], check=False)
    if mounted.returncode != 0:
        pytest.skip("may not mount a small file system here")
    try:
        (checkout / "data" / "raw").mkdir()
        for name, content in kept.items():
            (checkout / "data" / "raw" / name).write_bytes(content)
        result = run(checkout, sys.executable, "-m", "stages.prepare")
        left = [p for p in (checkout / "data").rglob("*") if p.name.endswith(".part")]
    finally:
        subprocess.run(["umount", str(checkout / "data")], check=True)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr
    assert not left


def test_an_unwritable_folder_is_named(checkout):
    """A file where a folder must be: nobody can write there, not even root."""
    (checkout / ".work").write_text("not a folder")
    result = run(checkout, sys.executable, "-m", "stages.prepare")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert ".work" in result.stderr
