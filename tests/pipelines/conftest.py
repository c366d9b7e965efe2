"""A small DVC project in a git repository of its own, with a training that keeps checkpoints and has a child."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.rehearse_failover import Server

ROOT = Path(__file__).resolve().parents[2]

DVC_YAML = """\
stages:
  prepare:
    cmd: python prepare.py
    deps: [prepare.py, raw]
    params: [seed]
    outs: [prepared.txt]
  train:
    cmd: python train.py
    deps: [train.py, prepared.txt]
    params: [train]
    outs: [weights.txt]
    meta: {gpu: true, minutes: 2, retries: 1}
  report:
    cmd: python report.py
    deps: [report.py, weights.txt]
    outs: [reports/robust_flags.npy]
    metrics: [reports/robustness.json]
"""

PREPARE = """\
import pathlib, yaml
raw = "".join(file.read_text() for file in sorted(pathlib.Path("raw").glob("*.txt")))
pathlib.Path("prepared.txt").write_text(f"{raw} {yaml.safe_load(open('params.yaml'))['seed']}")
with open(pathlib.Path.home() / "prepared.log", "a") as log:
    log.write("prepared\\n")
"""

# Weights are a chain of hashes over the epochs: any epoch left out, repeated or out of order changes them.
TRAIN = """\
import hashlib, json, os, pathlib, subprocess, sys, time, yaml
def tell(stage, code, message):  # as stages.common.endings does
    pathlib.Path(".work/endings").mkdir(parents=True, exist_ok=True)
    pathlib.Path(f".work/endings/{stage}.json").write_text(json.dumps({"code": code, "message": message}))
    return code
train = yaml.safe_load(open("params.yaml"))["train"]
data = pathlib.Path("prepared.txt").read_text()
key = hashlib.sha256(f"{train} {data}".encode()).hexdigest()[:16]
place = pathlib.Path(os.environ.get("AUTOLORA_WORK", ".work")) / "train" / key
place.mkdir(parents=True, exist_ok=True)
checkpoint = place / "checkpoint.txt"
epoch, state = 0, data
if checkpoint.exists():
    epoch, state = checkpoint.read_text().split(" ", 1)
    epoch = int(epoch)
    print(f"resumed after epoch {epoch}", flush=True)
# A child that leaves for a session of its own, as torchrun's workers do.
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with open(place / "pids", "a") as pids:
    pids.write(f"{os.getpid()} {child.pid} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
if train["method"] == "broken" and not (pathlib.Path.home() / "mended").exists():
    child.kill(); sys.exit(tell("train", 65, "method is 'broken': expected plain"))
if train["method"] == "hangs":
    time.sleep(600)
while epoch < train["epochs"]:
    time.sleep(train["seconds"])
    state, epoch = hashlib.sha256(state.encode()).hexdigest(), epoch + 1
    checkpoint.with_suffix(".part").write_text(f"{epoch} {state}")
    os.replace(checkpoint.with_suffix(".part"), checkpoint)
    bar = f"train: {100 * epoch // train['epochs']}%|#| {epoch}/{train['epochs']}"
    print(bar, end="\\r", file=sys.stderr, flush=True)
pathlib.Path("weights.txt").write_text(state)
child.kill()
"""

REPORT = """\
import hashlib, json, os, pathlib
import numpy as np
state = pathlib.Path("weights.txt").read_text()
digest = np.frombuffer(hashlib.sha256(state.encode()).digest(), np.uint8)
bits = np.unpackbits(digest)[:100].astype(bool)
os.makedirs("reports/timing", exist_ok=True)
flags = np.zeros(100, [("id", "S64"), ("label", "i8"), ("clean", "?"), ("robust", "?")])
flags["id"] = [f"{i:064d}" for i in range(100)]
flags["clean"], flags["robust"] = True, bits
np.save("reports/robust_flags.npy", flags)
json.dump({"clean_accuracy": 1.0, "robust_accuracy": float(bits.mean()), "weights": state,
           "attacks": [{"name": "apgd-ce", "robust_accuracy": float(bits.mean())}]},
          open("reports/robustness.json", "w"))
json.dump({"seconds": 1.5}, open("reports/timing/report.json", "w"))
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.email=test@example.org", "-c", "user.name=test"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=environment()).stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def make_project(folder: Path) -> Path:
    folder.mkdir(parents=True)
    files = {"dvc.yaml": DVC_YAML, "prepare.py": PREPARE, "train.py": TRAIN, "report.py": REPORT}
    files["params.yaml"] = "seed: 0\ntrain: {method: plain, epochs: 3, seconds: 0.02}\n"
    files[".gitignore"] = (
        ".work\n/raw/*\n!/raw/README.md\n/prepared.txt\n/weights.txt\n/reports\n/mlflow.db\n/mlruns\n__pycache__\n"
    )
    files["raw/README.md"] = "images go here\n"
    files["raw/a.txt"] = "raw data that git does not keep"
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    dvc(folder, "config", "core.analytics", "false")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "toy")
    return folder


def prefect_takes(*arguments: str) -> dict[str, Any]:
    """What Prefect's own command line makes of them: an unknown option is an error."""
    from prefect.cli._app import _app

    _, bound, _ = _app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    return bound.arguments


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the test reaches the user's own Prefect, DVC or git settings."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("AUTOLORA_WORK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Prefect on sqlite, with a home and shared storage for progress of its own; started once."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "home").mkdir()
    server = Server(folder)
    server.environment |= {"HOME": str(folder / "home"), "AUTOLORA_WORK": str(folder / "work")}
    try:
        yield server.start()
    finally:  # also where it did not answer in time
        server.stop()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("template") / "project")


@pytest.fixture
def project(template: Path, tmp_path: Path, home: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "project"))
