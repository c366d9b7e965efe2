"""A deployment as its tests give it and look at it, and as much of a model server as asks for canaries."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np

from pipelines.deploy import main
from pipelines.registry import triton_repository as repository
from stages.evidence.canaries import answers


def run(service, *more):
    return main(["synthetic@champion", "--to", str(service), *more])


def served(service):
    text = (service / "synthetic/config.pbtxt").read_text()
    number = repository.state(service / "synthetic")["current"]
    assert f"versions: [ {number} ]" in text
    return number


def folders(service):
    return repository.versions(service / "synthetic")


class Serving(BaseHTTPRequestHandler):
    """As much of KServe v2 as the canaries need; `offset`, `silent` and `refuses` are the planted faults."""

    folder, offset, silent, refuses = Path(), 0.0, False, 0

    def do_GET(self):
        self.reply({"inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]})

    def do_POST(self):
        if self.silent:
            return  # the connection is closed without a word
        if self.refuses:
            return self.send_error(self.refuses)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
        x = np.array(body["data"], np.float32).reshape(body["shape"])
        number = self.path.split("/")[5]
        logits = answers(self.folder / f"synthetic/{number}/model.onnx", x) + self.offset
        self.reply({"outputs": [{"name": "logits", "shape": list(logits.shape), "data": logits.ravel().tolist()}]})

    def reply(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value, default=float).encode())

    def log_message(self, *arguments):
        pass
