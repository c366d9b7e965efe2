"""Nobody is told of what runs here: no file of a maker's in the user's home, no look-up of a name, no way out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch import nn

import autolora
from deploy.model_repository import inference_service

ASK = """
import socket

def refused(*arguments, **named):
    print("ASKED FOR", arguments[:1], flush=True)
    raise OSError("no network here")

socket.getaddrinfo = socket.gethostbyname = socket.gethostbyname_ex = refused
"""
LIBRARY = """
import sys
import numpy as np
import autolora, autolora.training.loop, autolora.attacks.autoattack, autolora.export.write
from autolora.export.runtime import logits, open_session

logits(open_session(sys.argv[1]), np.zeros((2, 3, 8, 8), np.float32))
"""
PLAIN = """
import sys
import numpy as np, onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 8, 8), np.float32)})
"""
STAGES = """
import stages.card.page, stages.evaluate, stages.export, stages.finetune, stages.merge, stages.prepare, stages.validate
from stages.tracking.client import mlflow_module

mlflow_module()
"""
FLOWS = "import pipelines.rebuild, pipelines.promote, pipelines.deploy, pipelines.sweep, dvc.repo, huggingface_hub"
OURS = (
    "torch",
    "matplotlib",
    "fontconfig",
    "__pycache__",
)  # caches of what was computed here, of no interest to anybody


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    autolora.export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)).eval(), path, image_size=8)
    return path


def started(code: str, root: Path, folder: Path, *arguments: object, before: tuple[str, ...] = ()) -> str:
    """What a process with an empty home said, in which every look-up of a name fails and is told."""
    (folder / "home").mkdir()
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(ASK)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    where = {"HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(root)])}
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=kept | where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def left(folder: Path) -> list[str]:
    files = [str(path.relative_to(folder / "home")) for path in (folder / "home").rglob("*") if path.is_file()]
    return [name for name in files if not any(part in name for part in OURS)]


@pytest.mark.parametrize("code", [LIBRARY, STAGES, FLOWS], ids=["library", "stages", "flows"])
@pytest.mark.slow
def test_nothing_asks_for_a_name_and_nothing_is_left_in_the_home(root, model, tmp_path, code):
    assert "ASKED FOR" not in started(code, root, tmp_path, model)
    assert left(tmp_path) == []


def test_onnxruntime_alone_would_leave_something(root, model, tmp_path):
    """Else the test above could not fail; where a later version keeps quiet by itself, the switch can go."""
    started(PLAIN, root, tmp_path, model)
    if not left(tmp_path):
        pytest.skip("this onnxruntime does not report by itself")
    assert "onnxruntime" in " ".join(left(tmp_path))


def test_a_look_up_would_be_seen(root, tmp_path):
    code = "import socket\ntry:\n    socket.create_connection(('example.org', 80))\nexcept OSError:\n    pass"
    assert "example.org" in started(code, root, tmp_path)


@pytest.mark.parametrize("gpu", [False, True])
def test_what_serves_a_model_is_told_to_keep_quiet(gpu):
    service = yaml.safe_load(inference_service("s3://models/robust", "robust", gpu=gpu))
    assert {"name": "ORT_DISABLE_TELEMETRY", "value": "1"} in service["spec"]["predictor"]["model"]["env"]


def test_so_are_all_workers(root):
    services = yaml.safe_load((root / "deploy/compose.yaml").read_text())["services"]
    kubernetes = yaml.safe_load_all((root / "deploy/kubernetes/worker.yaml").read_text())
    (settings,) = [each["data"] for each in kubernetes if each["kind"] == "ConfigMap"]
    for found in (services["worker"]["environment"], services["worker-gpu"]["environment"], settings):
        assert found["ORT_DISABLE_TELEMETRY"] == "1"


ABROAD = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('192.0.2.1', 9))"  # nobody's address


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which sees what is written in C too")
@pytest.mark.parametrize(("code", "calls"), [(LIBRARY, 0), (ABROAD, 1)], ids=["library", "planted"])
def test_no_connection_leaves_the_machine(root, model, tmp_path, code, calls):
    log = tmp_path / "calls"
    started(code, root, tmp_path, model, before=("strace", "-f", "-o", str(log), "-e", "trace=connect,sendto"))
    abroad = [line for line in log.read_text().splitlines() if "AF_INET" in line and "127.0.0.1" not in line]
    assert len(abroad) == calls
