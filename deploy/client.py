"""Ask a served model about image files.

    python deploy/client.py http://localhost:8080 cat.png dog.png            # mlflow models serve
    python deploy/client.py http://localhost:8000 --triton robust cat.png    # Triton or KServe, protocol v2

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

import numpy as np
from PIL import Image, ImageOps


def read(path: str, size: int, as_bytes: bool) -> np.ndarray:
    """[3,h,w] in [0,1], or uint8 [h,w,3]: cut to a square from the middle and scaled, as `prepare` does."""
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    pixels = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    return pixels if as_bytes else pixels.transpose(2, 0, 1).astype(np.float32) / 255


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        sys.exit(f"{url} answers {error.code}: {error.read().decode()[:2000]}")


def ask_mlflow(server: str, paths: list[str], size: int, as_bytes: bool) -> np.ndarray:
    images = np.stack([read(path, size, as_bytes) for path in paths])
    reply = post(f"{server}/invocations", {"inputs": {"image": images.tolist()}})
    return np.array(reply["predictions"]["logits"])


def ask_triton(server: str, model: str, paths: list[str]) -> np.ndarray:
    with urllib.request.urlopen(f"{server}/v2/models/{model}", timeout=30) as reply:
        (contract,) = json.load(reply)["inputs"]
    as_bytes = contract["datatype"] == "UINT8"
    images = np.stack([read(path, contract["shape"][2], as_bytes) for path in paths])
    image = {"name": "image", "datatype": contract["datatype"], "shape": list(images.shape)}
    reply = post(f"{server}/v2/models/{model}/infer", {"inputs": [image | {"data": images.ravel().tolist()}]})
    (output,) = (o for o in reply["outputs"] if o["name"] == "logits")
    return np.array(output["data"]).reshape(output["shape"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--size", type=int, default=16, help="of the images as the model was trained on them")
    parser.add_argument("--bytes", action="store_true", help="the model takes uint8 [n,h,w,3]")
    parser.add_argument("--triton", metavar="MODEL", help="speak protocol v2 about this model")
    a = parser.parse_args()
    logits = ask_triton(a.server, a.triton, a.images) if a.triton else ask_mlflow(a.server, a.images, a.size, a.bytes)
    for path, row in zip(a.images, logits):
        likely = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        print(f"{path}: class {row.argmax()} ({likely.max():.2f})")


if __name__ == "__main__":
    main()
