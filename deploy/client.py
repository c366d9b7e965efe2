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


def read(path: str, size: int, as_bytes: bool, stored: int = 0) -> np.ndarray:
    """[3,h,w] in [0,1], or uint8 [h,w,3]: cut to a square from the middle and scaled, as `prepare` does.

    stored: `data.stored_size`, where it is the larger one: the square is scaled to it, and its middle is cut out.
    The last bits may differ from what was attacked (another decoder, another way to scale).
    """
    with Image.open(path) as file:
        image = in_colour(ImageOps.exif_transpose(file))
    side = max(size, stored)
    scaled, edge = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR), (side - size) // 2
    pixels = np.asarray(scaled.crop((edge, edge, edge + size, edge + size)))
    return pixels if as_bytes else pixels.transpose(2, 0, 1).astype(np.float32) / 255


def in_colour(image: Image.Image) -> Image.Image:
    """What is transparent lies on white, and of 16 bits the upper ones count."""
    if image.mode.startswith("I"):
        image = Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers)
    return image.convert("RGB")


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


def for_mlflow(paths: list[str], size: int, as_bytes: bool, stored: int) -> dict[str, Any]:
    images = np.stack([read(path, size, as_bytes, stored) for path in paths])
    return {"inputs": {"image": images.tolist()}}


def for_triton(server: str, model: str, paths: list[str], stored: int) -> dict[str, Any]:
    (contract,) = ask(f"{server}/v2/models/{quote(model)}")["inputs"]
    as_bytes = contract["datatype"] == "UINT8"
    images = np.stack([read(path, contract["shape"][2], as_bytes, stored) for path in paths])
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
    parser.add_argument("--stored", type=int, default=0, help="data.stored_size, where params.yaml sets one")
    parser.add_argument("--bytes", action="store_true", help="the model takes uint8 [n,h,w,3]")
    parser.add_argument("--triton", metavar="MODEL", help="speak protocol v2 about this model")
    parser.add_argument("--body", action="store_true", help="print the request instead of sending it")
    a = parser.parse_args()
    if a.triton:
        body = for_triton(a.server, a.triton, a.images, a.stored)
    else:
        body = for_mlflow(a.images, a.size, a.bytes, a.stored)
    if a.body:
        return print(json.dumps(body))
    logits = ask_triton(a.server, a.triton, body) if a.triton else ask_mlflow(a.server, body)
    for path, row in zip(a.images, logits):
        likely = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        print(f"{path}: class {row.argmax()} ({likely.max():.2f})")


if __name__ == "__main__":
    main()
