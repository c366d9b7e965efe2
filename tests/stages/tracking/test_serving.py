"""The registered version answers what keeps the contract, and says with status 400 what does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autolora.export.runtime import logits, open_session
from autolora.export.write import export_onnx
from deploy import client
from tests.export.nets import tiny

CLASSES = [f"class {i}" for i in range(10)]


def pixels(n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, 8, 8)).astype(np.float32) / 255


def register(folder: Path, monkeypatch: pytest.MonkeyPatch, migrated: Path, pixels: str = "float32") -> str:
    """A registered version with the alias `champion`, in sqlite under `folder`."""
    shutil.copy(migrated, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    from stages.tracking.client import mlflow_module
    from stages.tracking.serving import log_checked

    mlflow = mlflow_module()
    export_onnx(tiny(), folder / "model.onnx", pixels=pixels)
    mlflow.set_experiment("serving")
    with mlflow.start_run():
        log_checked(folder / "model.onnx", CLASSES, name="classifier", registered_model_name="robust")
    mlflow.MlflowClient().set_registered_model_alias("robust", "champion", 1)
    return "models:/robust@champion"


@pytest.mark.slow
def test_the_bytes_stay_and_the_check_stands_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated: Path
) -> None:
    uri = register(tmp_path, monkeypatch, migrated)
    import mlflow

    copy = Path(mlflow.artifacts.download_artifacts(uri)) / "model.onnx"
    assert copy.read_bytes() == (tmp_path / "model.onnx").read_bytes()
    assert mlflow.onnx.load_model(uri).graph.node  # the onnx flavour is there as well
    served = mlflow.pyfunc.load_model(uri)
    expected = logits(open_session(tmp_path / "model.onnx"), pixels())
    assert np.allclose(served.predict({"image": pixels()})["logits"], expected)
    for bad in (pixels() * 255, pixels()[:, :2], pixels().astype(np.float64), pixels() - 1):
        with pytest.raises(mlflow.MlflowException) as caught:
            served.predict({"image": bad})
        assert caught.value.get_http_status_code() == 400
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(mlflow.MlflowException, match="damaged"):
        mlflow.pyfunc.load_model(str(copy.parent))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated: Path) -> Iterator[str]:
    """`mlflow models serve`, started for real on a free port."""
    uri = register(tmp_path, monkeypatch, migrated)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow looks for uvicorn there
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "-p", str(port), "--env-manager", "local"]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, env=os.environ | {"PATH": path}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", process, tmp_path / "log")
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no server: {log.read_text()[-2000:]}")


def ask(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_over_http(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    status, reply = ask(server, {"inputs": {"image": pixels().tolist()}})
    assert status == 200
    expected = logits(open_session(tmp_path / "model.onnx"), pixels())
    assert np.allclose(reply["predictions"]["logits"], expected, atol=1e-5)
    refused = {
        "expected [0, 1]; divide grey levels by 255": (pixels() * 255).tolist(),
        "(-1, 3, 8, 8)": pixels()[:, :, :4].tolist(),
        "400": [[["cat"]]],
    }
    for reason, image in refused.items():
        status, reply = ask(server, {"inputs": {"image": image}})
        assert status == 400, reply
        assert reason in reply or reason == "400"
    assert ask(server, {"inputs": {"picture": pixels().tolist()}})[0] == 400
    assert ask(server, {"nothing": 1})[0] == 400
    Image.new("RGB", (9, 9)).save(tmp_path / "black.png")
    address = server.removesuffix("/invocations")
    monkeypatch.setattr("sys.argv", ["client", address, str(tmp_path / "black.png"), "--size", "8"])
    client.main()
    assert re.fullmatch(r".*black\.png: class \d \(\d\.\d\d\)\n", capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", ["client", address, str(tmp_path / "black.png"), "--size", "9"])
    with pytest.raises(SystemExit, match=r"answers 400: Shape of input \(1, 3, 9, 9\) .* \(-1, 3, 8, 8\)"):
        client.main()


@pytest.mark.slow
def test_bytes_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated: Path) -> None:
    """The server's own routes, without a process and a port of their own."""
    uri = register(tmp_path, monkeypatch, migrated, "uint8")
    import mlflow.pyfunc.scoring_server
    from starlette.testclient import TestClient

    model = TestClient(mlflow.pyfunc.scoring_server.init(mlflow.pyfunc.load_model(uri)))
    raw = np.rint(pixels() * 255).astype(int).transpose(0, 2, 3, 1)
    reply = model.post("/invocations", json={"inputs": {"image": raw.tolist()}})
    assert reply.status_code == 200
    expected = logits(open_session(tmp_path / "model.onnx"), pixels())
    assert np.allclose(reply.json()["predictions"]["logits"], expected, atol=1e-5)
    for bad in (raw + 256, raw - 256, pixels().transpose(0, 2, 3, 1)):
        reply = model.post("/invocations", json={"inputs": {"image": bad.tolist()}})
        assert reply.status_code == 400, reply.text
