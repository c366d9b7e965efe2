"""The door of benchmarks.fuzz that is a server: HTTP requests to a registered model, served by MLflow."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from benchmarks._served import CLASSES, SHAPE, Served, serving

NAME = "HTTP requests"
SECONDS, MEMORY_MB = 20, 1024
DEEP = 900  # lists in lists: about here json.loads, which MLflow asks before any code of ours, runs out of stack
KINDS = st.sampled_from(
    ["application/json"] * 6 + ["text/csv", "application/octet-stream", "", "application/json; charset=utf-16"]
)


def good(number: int) -> list[Any]:
    return np.random.default_rng(number).random((1 + number % 3, *SHAPE), dtype=np.float32).tolist()


NUMBERS = st.floats() | st.integers() | st.none() | st.booleans() | st.text(max_size=4)
NESTED = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=4), max_leaves=30)
SCALED = st.builds(
    lambda n, by: (np.asarray(good(n)) * by).tolist(), st.integers(0, 9), st.sampled_from([1, 1, 255, -1, 1e30])
)
SHAPED = st.builds(lambda dims: np.zeros(dims).tolist(), st.lists(st.integers(0, 9), min_size=0, max_size=5))
IMAGES = SCALED | SHAPED | NESTED
BODIES = st.one_of(
    st.builds(lambda images: {"inputs": {"image": images}}, IMAGES),
    st.builds(lambda images: {"inputs": images}, IMAGES),
    st.builds(lambda name, images: {"inputs": {name: images}}, st.text(max_size=6), SHAPED),
    st.builds(
        lambda key, images: {key: {"image": images}},
        st.sampled_from(["instances", "dataframe_split", "params"]),
        SHAPED,
    ),
    st.recursive(
        NUMBERS, lambda inner: st.dictionaries(st.text(max_size=5), inner, max_size=3) | st.lists(inner, max_size=3)
    ),
)
TEXTS = st.one_of(
    st.builds(lambda body: json.dumps(body).encode("utf-8", "surrogatepass"), BODIES),
    st.builds(lambda body, at: json.dumps(body).encode()[: int(at * 400)], BODIES, st.floats(0, 1)),
    st.binary(max_size=100),
    st.sampled_from([b"[" * 100_000, b'{"inputs": 1e999}', b'{"inputs": {"image": ' + b"[" * 500 + b"]" * 500 + b"}}"]),
)


def door(name: str, inputs: int, seed: int) -> dict[str, Any]:
    began, refused, tried = time.time(), 0, 0
    findings: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="served-") as folder, serving(Path(folder)) as model:
        most = model.megabytes()

        def note(kind: str, what: str, body: bytes) -> None:
            example = {"door": name, "kind": kind, "what": what, "example": repr(body)[:1500], "count": 0}
            findings.setdefault((kind, what), example)["count"] += 1

        @seeded(seed)
        @settings(
            max_examples=inputs, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(TEXTS, KINDS)
        def every(body: bytes, kind: str) -> None:
            nonlocal refused, tried
            tried += 1
            refused += look(model, body, kind, note)

        every()
        if model.megabytes() - most > MEMORY_MB:
            note("memory", f"{model.megabytes() - most:.0f} MB more", b"all of them")
        if model.ask({"inputs": {"image": good(1)}})[0] != 200:
            note("crash", "the server does not answer any more", b"all of them")
    return {
        "door": name,
        "tried": tried,
        "refused with a message": refused,
        "seconds": round(time.time() - began, 1),
        "findings": [finding for finding in findings.values() if finding["kind"] != "known"],
        "known": [finding for finding in findings.values() if finding["kind"] == "known"],
    }


def look(model: Served, body: bytes, kind: str, note: Callable[[str, str, bytes], None]) -> bool:
    """Whether it was refused with a reason; what is neither refused nor answered rightly is a finding."""
    try:
        status, reply = model.post(body, kind)
    except TimeoutError:
        note("hang", f"no answer within {SECONDS} s", body)
        return False
    except OSError as error:
        note("crash", f"the connection broke: {type(error).__name__}", body)
        return False
    if 400 <= status < 500:
        if not reply.strip():
            note("crash", f"status {status} without a reason", body)
        return True
    if status == 500 and body.count(b"[") > DEEP:
        note("known", "MLflow's own parser gives up without a reason, and goes on serving", body)
    elif status != 200:
        note("crash", f"status {status}: {reason(reply)}", body)
    elif wrong := misanswered(model, body, reply):
        note("crash", wrong, body)
    return False


def reason(reply: bytes) -> str:
    try:
        said = json.loads(reply)
        text = str(said.get("message") or said.get("error_code") or said)
    except (ValueError, AttributeError):
        text = reply.decode(errors="replace")
    return text.strip().split("\n")[-1][-120:]


def misanswered(model: Served, body: bytes, reply: bytes) -> str | None:
    """An answer must be to pixels in [0,1], and numpy's."""
    given = json.loads(body)
    images = given.get("inputs", given.get("instances")) if isinstance(given, dict) else None
    images = images.get("image") if isinstance(images, dict) else images
    logits = np.asarray(json.loads(reply)["predictions"]["logits"], np.float64)
    try:
        pixels = np.asarray(images, np.float32)
    except (ValueError, TypeError):
        return "what is no array of numbers was answered"
    if pixels.shape[1:] != SHAPE or not (pixels >= 0).all() or not (pixels <= 1).all():
        return "what breaks the contract was answered"
    near = logits.shape == (len(pixels), CLASSES) and np.abs(logits - model.expected(pixels)).max() < 1e-3
    return None if near and all(map(math.isfinite, logits.flat)) else "a wrong answer"
