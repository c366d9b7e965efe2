"""model.onnx through onnxruntime: sessions, logits, and the checks that stand before an answer.

    session = open_session("model.onnx")                # device="cuda": the CUDA provider with TF32 off
    logits(session, pixels)                             # float32 [n,3,h,w] in [0,1], whatever input the file takes

No torch here: a server, a client or a benchmark needs numpy and onnxruntime alone. Everybody else takes onnxruntime
from here: it tells its maker of every session unless it is told not to before it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as onnxruntime

PROVIDERS: dict[str, list] = {
    "cpu": ["CPUExecutionProvider"],
    # TF32 is on by default and costs three digits; adversarial images sit on the boundary, where digits decide.
    "cuda": [("CUDAExecutionProvider", {"use_tf32": 0}), "CPUExecutionProvider"],
}


class BadModel(ValueError):
    """A file that onnxruntime cannot open, or that is not what it says."""


class BadImages(ValueError):
    """Images that do not keep the file's input contract."""


def open_session(
    model: str | Path | bytes, device: str = "cpu", threads: int = 0, *, beside_torch: bool = False
) -> onnxruntime.InferenceSession:
    """A session on a file or on its bytes; `threads` 0: one per core.

    `beside_torch`, where torch computes between one run and the next, threads that have nothing to do sleep. (Spinning,
    they take the cores from torch's, and all is 1.3 to 4 times as slow.) Nor is all memory of a run planned as one
    block, on top of what the first run took.
    """
    name = "the model" if isinstance(model, bytes) else str(model)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise BadModel(f"{name}: no such file")
    providers = _providers(device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = not beside_torch
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if beside_torch else "1")
    options.log_severity_level = 4  # fatal: what matters arrives as an exception
    try:
        return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers)
    except Exception as error:  # onnxruntime has one class per kind of fault, and no common one
        raise BadModel(
            f"{name} is not a model that onnxruntime {onnxruntime.__version__} can run, or it is damaged "
            f"(truncated, for instance): {str(error).partition(chr(10))[0]}"
        ) from error


def best_device() -> str:
    """Where this onnxruntime computes fastest."""
    return "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"


def _providers(device: str) -> list:
    if device not in PROVIDERS:
        raise ValueError(f"device is {device!r}: expected one of {', '.join(PROVIDERS)}")
    if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ValueError(
            "device is 'cuda', but this onnxruntime has no CUDA provider: install onnxruntime-gpu in its place"
        )
    return PROVIDERS[device]


def takes_bytes(session: onnxruntime.InferenceSession) -> bool:
    """Is the input uint8 NHWC, with the conversion in the graph?"""
    return session.get_inputs()[0].type == "tensor(uint8)"


def image_shape(session: onnxruntime.InferenceSession) -> tuple[int, ...]:
    """The shape of one image, as the file takes it: (3,h,w), or (h,w,3) for bytes."""
    return tuple(session.get_inputs()[0].shape[1:])


def as_input(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    """[n,3,h,w] in [0,1] -> what the file takes: the same, also in float16, or the nearest uint8 levels as NHWC."""
    if not takes_bytes(session):
        kind = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
        return np.ascontiguousarray(pixels, dtype=kind)
    return np.ascontiguousarray(np.rint(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def logits(session: onnxruntime.InferenceSession, pixels: np.ndarray, batch: int = 256) -> np.ndarray:
    """float32 [n,classes] for [n,3,h,w] in [0,1]."""
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: as_input(session, part)})[0] for part in _batches(pixels, batch)]
    return np.concatenate(parts).astype(np.float32, copy=False)


def _batches(pixels: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(pixels), batch):
        yield pixels[start : start + batch]


def check_images(images: np.ndarray, shape: tuple[int, ...], dtype: str) -> None:
    """Raise BadImages unless `images` is what a file with this input contract was attacked on.

    A classifier answers pixels in 0..255, NaN or a transposed image without a word, and wrongly.
    """
    expected = f"{dtype} [n,{','.join(str(side) for side in shape)}]"
    if images.ndim != len(shape) + 1 or tuple(images.shape[1:]) != tuple(shape) or len(images) == 0:
        raise BadImages(f"image has shape {list(images.shape)}: expected {expected}, n at least 1")
    if images.dtype != np.dtype(dtype):
        raise BadImages(f"image has dtype {images.dtype}: expected {expected}")
    if dtype == "uint8":
        return
    if not np.isfinite(images).all():
        raise BadImages("image holds NaN or infinite values: expected pixels in [0, 1]")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        hint = "; divide grey levels by 255" if high > 1 and high <= 255 and low >= 0 else ""
        raise BadImages(f"image has pixels from {low:g} to {high:g}: expected [0, 1]{hint}")


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 255, however they came, as uint8; a cast alone would wrap 300 round to 44."""
    if images.dtype == np.uint8:
        return images
    if not (
        np.isfinite(images).all() and (images == np.rint(images)).all() and images.min() >= 0 and images.max() <= 255
    ):
        raise BadImages("image holds values that are no bytes: expected whole numbers from 0 to 255")
    return images.astype(np.uint8)
