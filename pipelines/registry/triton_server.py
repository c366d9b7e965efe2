"""A running server that is asked about images (KServe v2 over HTTP): is it there, and does it answer as recorded?"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

import numpy as np

from stages.common.runner import StageError
from stages.evidence.canaries import compare

Canaries = dict[str, np.ndarray]
NOT_OF_THE_MODEL = {401, 403, 407, 408, 425, 429}  # a proxy's or a limiter's word: whoever asks, and how often


class Silent(StageError):
    """The server that was asked does not answer: nothing is known of the version."""


def alive(server: str) -> None:
    """Is there anybody to ask? (KServe v2; which models it has does not matter yet.)"""
    _wait_ready(f"{server.rstrip('/')}/v2/health/live", 0)


def ask(server: str, name: str, number: int, canaries: Canaries, seconds: float = 60) -> str | None:
    """The canaries to a running server (KServe v2 over HTTP), once it has loaded the version."""
    base = f"{server.rstrip('/')}/v2/models/{quote(name)}/versions/{number}"
    _wait_ready(f"{base}/ready", seconds)
    try:
        return compare(_answers(base, canaries["x"]), canaries["logits"])
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in NOT_OF_THE_MODEL:
            raise  # that is an answer
        raise Silent(f"{server} does not answer ({type(error).__name__}: {error})") from None


def _answers(base: str, x: np.ndarray) -> np.ndarray:
    with urllib.request.urlopen(base, timeout=10) as reply:
        (image,) = json.load(reply)["inputs"]
    body = {"inputs": [_tensor(image["name"], image["datatype"], x)]}
    request = urllib.request.Request(f"{base}/infer", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        output = json.load(reply)["outputs"][0]
    return np.asarray(output["data"], np.float32).reshape(output["shape"])


def _tensor(name: str, datatype: str, x: np.ndarray) -> dict[str, Any]:
    if datatype == "UINT8":
        x = np.rint(x * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return {"name": name, "shape": list(x.shape), "datatype": datatype, "data": x.ravel().tolist()}


def _wait_ready(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                raise Silent(f"{url} is not ready after {seconds:g} s ({error})") from None
        time.sleep(0.5)
