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


def linear_onnx(path: Path, seed: int = 0) -> np.ndarray:
    """The file, and its matrix."""
    from onnx import TensorProto, helper, numpy_helper, save

    matrix = np.random.default_rng(seed).normal(size=(int(np.prod(SHAPE)), CLASSES)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *SHAPE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph(nodes, "linear", [image], [logits], [numpy_helper.from_array(matrix, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    names = json.dumps([str(number) for number in range(CLASSES)])
    helper.set_model_props(model, {"classes": names, "threat": "linf:8/255", "weights_sha256": "0" * 64})
    save(model, path)
    return matrix


def made(folder: Path) -> np.ndarray:
    """Logged as `register` does it, so with the loader that checks its input; in a process of its own."""
    matrix = linear_onnx(folder / "model.onnx")
    code = (
        "import sys\nfrom mlflow.models import Model\nfrom stages.tracking import serving\n"
        f"sign = serving.signature(sys.argv[1], {CLASSES})\n"
        "serving.save_model(sys.argv[2], sys.argv[1], signature=sign)\n"
    )
    command = [sys.executable, "-c", code, str(folder / "model.onnx"), str(folder / "model")]
    subprocess.run(command, check=True, env=environment(), capture_output=True)
    return matrix


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mlflow looks for uvicorn there
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
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
