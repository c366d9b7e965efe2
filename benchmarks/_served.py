"""A model served for a benchmark: `mlflow models serve` on the loopback, behind it a small linear classifier.

with serving(folder) as model:
    status, answer = model.ask({"inputs": {"image": images.tolist()}})
    model.expected(images)            # by numpy alone
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SHAPE, CLASSES = (3, 8, 8), 10


@dataclass
class Served:
    port: int
    matrix: np.ndarray  # [192,10]
    process: psutil.Popen

    def expected(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32) @ self.matrix

    def post(self, body: bytes, kind: str = "application/json", path: str = "/invocations") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", path, body, {"Content-Type": kind})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def ask(self, content: Any) -> tuple[int, Any]:
        status, reply = self.post(json.dumps(content).encode())
        return status, json.loads(reply)

    def megabytes(self) -> float:
        family = [self.process, *self.process.children(recursive=True)]
        return max(process.memory_info().rss for process in family) / 2**20


def made(folder: Path) -> np.ndarray:
    """Logged as `register` does it, so with the loader that checks its input; in a process of its own."""
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom mlflow.models import Model\n"
        "from stages.tracking import serving\nfrom tests.registry.synthetic import make_onnx\n"
        "folder = Path(sys.argv[1])\n_, matrix = make_onnx(folder / 'model.onnx', np.random.default_rng(0), 16)\n"
        "np.save(folder / 'matrix.npy', matrix)\n"
        f"serving.save_model(str(folder / 'model'), str(folder / 'model.onnx'), "
        f"signature=serving.signature(folder / 'model.onnx', {CLASSES}))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment())
    return np.load(folder / "matrix.npy")


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow looks for uvicorn there
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "ORT_DISABLE_TELEMETRY": "1"}
    return os.environ | quiet | {"PATH": path, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    matrix = made(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "model"), "-p", str(port)]
    with open(folder / "log", "w") as log:
        process = psutil.Popen([*command, "--env-manager", "local"], stdout=log, stderr=log, env=environment())
    model = Served(port, matrix, process)
    try:
        wait(model, folder / "log")
        yield model
    finally:
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def wait(model: Served, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and model.process.poll() is None:
        with suppress(OSError, http.client.HTTPException):
            if model.post(b"", path="/ping")[0] in (200, 405):
                return
        time.sleep(0.3)
    raise RuntimeError(f"the server does not start: {log.read_text()[-2000:]}")
