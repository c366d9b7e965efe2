"""What a user gets wrong stops the stage with one line: what, where, what to do; nothing half-written stays."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from tests.house.imports import ROOT
from tests.user.clone import Clone


@pytest.fixture
def checkout(tmp_path, root, python) -> Clone:
    return Clone(tmp_path, root, python)


def set_param(checkout, key, value):
    params = checkout.folder / "params.yaml"
    tree = yaml.safe_load(params.read_text())
    section, name = key.split(".")
    tree[section][name] = value
    params.write_text(yaml.safe_dump(tree))


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
    result = checkout.run("python", "-m", f"stages.{stage}")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.slow
def test_a_missing_weights_file_and_an_unknown_backbone(checkout):
    assert checkout.run("dvc", "repro", "validate").returncode == 0
    set_param(checkout, "backbone.weights", "models/pretrained/none.safetensors")
    result = checkout.run("python", "-m", "stages.finetune")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "models/pretrained/none.safetensors" in result.stderr
    shutil.copyfile(ROOT / "params.yaml", checkout.folder / "params.yaml")
    set_param(checkout, "backbone.arch", "resnet10q")
    result = checkout.run("python", "-m", "stages.finetune")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "resnet10q" in result.stderr
    assert "resnet10t" in result.stderr  # what was probably meant


@pytest.mark.slow
def test_a_failed_stage_loses_nothing(checkout):
    """A failure, `dvc checkout` for the previous outputs, the fault mended: the pipeline goes on."""
    assert checkout.run("dvc", "repro", "prepare").returncode == 0
    manifest = (checkout.folder / "data" / "manifest.csv").read_bytes()
    right = (checkout.folder / "params.yaml").read_text()
    set_param(checkout, "data.source", "folder")  # data/raw holds no images
    failed = checkout.run("dvc", "repro", "prepare")
    assert failed.returncode != 0
    assert "data/raw" in failed.stderr
    assert "Traceback" not in failed.stderr
    (checkout.folder / "params.yaml").write_text(right)
    assert checkout.run("dvc", "checkout", "prepare").returncode == 0
    assert (checkout.folder / "data" / "manifest.csv").read_bytes() == manifest
    assert "up to date" in checkout.run("dvc", "repro", "prepare").stdout


@pytest.mark.slow
def test_a_full_disk_is_named(checkout):
    """data/ on a file system of 256 KB."""
    data = checkout.folder / "data"
    kept = {p.name: p.read_bytes() for p in (data / "raw").iterdir()}
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(data)], check=False)
    if mounted.returncode != 0:
        pytest.skip("may not mount a small file system here")
    try:
        (data / "raw").mkdir()
        for name, content in kept.items():
            (data / "raw" / name).write_bytes(content)
        result = checkout.run("python", "-m", "stages.prepare")
        left = [p for p in data.rglob("*") if p.name.endswith(".part")]
    finally:
        subprocess.run(["umount", str(data)], check=True)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "No space left on device" in result.stderr
    assert not left


def test_an_unwritable_folder_is_named(checkout):
    """A file where a folder must be: nobody can write there, not even root."""
    (checkout.folder / ".work").write_text("not a folder")
    result = checkout.run("python", "-m", "stages.prepare")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert ".work" in result.stderr
