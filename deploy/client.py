"""Ask a served model about image files.

    python deploy/client.py http://localhost:8080 cat.png dog.png            # mlflow models serve
    python deploy/client.py http://localhost:8000 --triton robust cat.png    # Triton or KServe, protocol v2
    python deploy/client.py http://localhost:8080 --body cat.png > body.json  # for curl -d @body.json

Standard library, numpy and Pillow. Triton says what it takes; MLflow does not, so `--size`, and `--bytes` for a model
exported with `export.input: uint8`.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps


def read(path: str, size: int, as_bytes: bool) -> np.ndarray:
    """[3,h,w] in [0,1], or uint8 [h,w,3]: cut to a square from the middle and scaled, as `prepare` does."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return pixels if as_bytes else pixels.transpose(2, 0, 1).astype(np.float32) / 255


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url} answers {error.code}: {reason(error.read().decode(errors='replace'))}")
    except urllib.error.URLError as error:
        sys.exit(f"{url} does not answer: {error.reason}")


def reason(reply: str) -> str:
    """MLflow repeats the whole input before it says what is wrong with it."""
    try:
        said = json.loads(reply)
        reply = said.get("message") or said.get("error") or reply
    except (ValueError, AttributeError):
        pass
    return reply.rsplit("Error: ", 1)[-1][-1000:]


def for_mlflow(paths: list[str], size: int, as_bytes: bool) -> dict[str, Any]:
    images = np.stack([read(path, size, as_bytes) for path in paths])
    return {"inputs": {"image": images.tolist()}}


def for_triton(server: str, model: str, paths: list[str]) -> dict[str, Any]:
    (contract,) = ask(f"{server}/v2/models/{quote(model)}")["inputs"]
    as_bytes = contract["datatype"] == "UINT8"
    images = np.stack([read(path, contract["shape"][2], as_bytes) for path in paths])
    image = {"name": "image", "datatype": contract["datatype"], "shape": list(images.shape)}
    return {"inputs": [image | {"data": images.ravel().tolist()}]}


def ask_mlflow(server: str, body: dict[str, Any]) -> np.ndarray:
    return np.array(ask(f"{server}/invocations", body)["predictions"]["logits"])


def ask_triton(server: str, model: str, body: dict[str, Any]) -> np.ndarray:
    reply = ask(f"{server}/v2/models/{quote(model)}/infer", body)
    (output,) = (o for o in reply["outputs"] if o["name"] == "logits")
    return np.array(output["data"]).reshape(output["shape"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--size", type=int, default=16, help="of the images as the model was trained on them")
    parser.add_argument("--bytes", action="store_true", help="the model takes uint8 [n,h,w,3]")
    parser.add_argument("--triton", metavar="MODEL", help="speak protocol v2 about this model")
    parser.add_argument("--body", action="store_true", help="print the request instead of sending it")
    a = parser.parse_args()
    body = for_triton(a.server, a.triton, a.images) if a.triton else for_mlflow(a.images, a.size, a.bytes)
    if a.body:
        return print(json.dumps(body))
    logits = ask_triton(a.server, a.triton, body) if a.triton else ask_mlflow(a.server, body)
    for path, row in zip(a.images, logits):
        likely = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        print(f"{path}: class {row.argmax()} ({likely.max():.2f})")


if __name__ == "__main__":
    main()
