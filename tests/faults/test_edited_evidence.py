"""Evidence that was edited after its stage wrote it is not registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autolora.common.files import read_json, write_json
from stages.common.errors import StageError
from stages.evidence.files import EXAMPLES, EXPORT, FILES, FLAGS, QUALITY, ROBUSTNESS, Evidence
from stages.register import refuse_altered
from tests.registry.synthetic import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and a dvc.lock that DVC itself has written of it."""
    folder = make_run(tmp_path_factory.mktemp("finished") / "run")
    stage = {"cmd": "true", "outs": [*FILES, EXPORT, EXAMPLES]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"made": stage}}))
    for command in (["init", "--no-scm"], ["commit", "--force"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_what_the_stages_wrote_is_let_through(run):
    refuse_altered(Evidence(run))


@pytest.mark.parametrize("name", [ROBUSTNESS, FLAGS, QUALITY, EXAMPLES, f"{EXPORT}/model.onnx"])
def test_one_byte_more_is_named(run, name):
    file = run / name
    before = file.read_bytes()
    file.chmod(0o644)  # DVC may have linked it from its cache, read-only
    file.unlink()
    file.write_bytes(before + b" ")
    try:
        with pytest.raises(StageError, match=EXPORT if name.startswith(EXPORT) else name):
            refuse_altered(Evidence(run))
    finally:
        file.write_bytes(before)


def test_a_better_number_is_refused(run):
    before = (run / ROBUSTNESS).read_bytes()
    better = read_json(run / ROBUSTNESS) | {"robust_accuracy": 0.99}
    (run / ROBUSTNESS).unlink()
    write_json(run / ROBUSTNESS, better)
    try:
        with pytest.raises(StageError, match="not what the stage wrote"):
            refuse_altered(Evidence(run))
    finally:
        (run / ROBUSTNESS).write_bytes(before)


def test_a_file_added_to_the_export_is_seen(run):
    (run / EXPORT / "more.onnx").write_bytes(b"planted")
    try:
        with pytest.raises(StageError, match=EXPORT):
            refuse_altered(Evidence(run))
    finally:
        (run / EXPORT / "more.onnx").unlink()


def test_without_a_lock_there_is_nothing_to_compare_with(tmp_path):
    refuse_altered(Evidence(make_run(tmp_path / "run")))
