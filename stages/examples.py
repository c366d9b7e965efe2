"""Stored images on which the ONNX file's answers are known: canaries for whoever deploys it, a gallery for the card.

x, logits, ids = canaries(evidence)        # what the file answers here is what it must answer anywhere
for example in gallery(evidence): ...      # an image, the perturbation, and how the sum was read
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from autolora.runtime import logits, open_session
from stages.evidence import EXAMPLES, ONNX, Evidence

CANARY_IMAGES, GALLERY_IMAGES = 6, 12
TOLERANCE = 5e-3  # logits move about 1e-5 between processors, 1e-3 with TF32, and by units when the file is another


@dataclass(frozen=True)
class Example:
    truth: str
    seen: str  # what the model reads in the adversarial image
    strip: str  # PNG as data URI: clean | perturbation, magnified | adversarial
    width: int
    size: int


def answers(path: str | Path, x: np.ndarray) -> np.ndarray:
    """Logits of a batch of pixels in [0,1], by onnxruntime on the processor."""
    return logits(_session(str(path), Path(path).stat().st_mtime_ns), x)


@cache
def _session(path: str, _changed: int) -> Any:
    return open_session(path)


def stored(evidence: Evidence) -> dict[str, np.ndarray]:
    with np.load(evidence.path(EXAMPLES), allow_pickle=False) as file:
        return {name: file[name] for name in ("x", "adversarial", "y", "ids", "found")}


def canaries(evidence: Evidence) -> dict[str, np.ndarray]:
    """A few clean and adversarial images, spread over the stored ones, and what the file answers."""
    data = stored(evidence)
    picked = np.unique(np.linspace(0, len(data["y"]) - 1, CANARY_IMAGES).astype(int))
    clean = data["x"][picked].astype(np.float32) / 255
    x = np.concatenate([clean, data["adversarial"][picked].astype(np.float32)])
    return {"x": x, "logits": answers(evidence.path(ONNX), x), "ids": np.concatenate([data["ids"][picked]] * 2)}


def disagreement(path: str | Path, expected: dict[str, np.ndarray]) -> str | None:
    """Why this file is not the one whose answers were recorded, or None."""
    logits = answers(path, expected["x"])
    return compare(logits, expected["logits"])


def compare(logits: np.ndarray, recorded: np.ndarray) -> str | None:
    if logits.shape != recorded.shape:
        return f"answers have shape {logits.shape}, recorded were {recorded.shape}"
    difference = float(np.abs(logits - recorded).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(recorded).max())):  # also when it is NaN
        return f"logits differ by up to {difference:.3g} from those recorded"
    return None


def gallery(evidence: Evidence, classes: list[str]) -> list[Example]:
    """Images that were read rightly until they were attacked, from as many classes as there are."""
    data = stored(evidence)
    broken = np.flatnonzero(data["found"])
    clean = data["x"][broken].astype(np.float32) / 255
    if not len(broken):
        return []
    seen = answers(evidence.path(ONNX), data["adversarial"][broken]).argmax(1)
    right = answers(evidence.path(ONNX), clean).argmax(1) == data["y"][broken]
    order = _spread(data["y"][broken], np.flatnonzero(right & (seen != data["y"][broken])))
    return [
        Example(
            classes[data["y"][broken[i]]],
            classes[seen[i]],
            *_strip(clean[i], data["adversarial"][broken[i]].astype(np.float32)),
            clean.shape[-2],
        )
        for i in order[:GALLERY_IMAGES]
    ]


def _spread(labels: np.ndarray, candidates: np.ndarray) -> list[int]:
    """The first of each class, then the second of each class, and so on."""
    rank = {int(i): int((labels[candidates[:k]] == labels[i]).sum()) for k, i in enumerate(candidates)}
    return sorted(rank, key=lambda i: (rank[i], labels[i]))


def _strip(clean: np.ndarray, adversarial: np.ndarray) -> tuple[str, int]:
    """Three images in a row, a thin gap between them; the perturbation is scaled to the full range around grey."""
    from PIL import Image

    offset = adversarial - clean
    magnified = 0.5 + offset / (2 * max(float(np.abs(offset).max()), 1e-9))
    gap = np.full((3, clean.shape[1], max(1, clean.shape[2] // 16)), np.nan, np.float32)
    row = np.concatenate([clean, gap, magnified, gap, adversarial], axis=2).transpose(1, 2, 0)
    opaque = np.where(np.isnan(row[..., :1]), 0, 255).astype(np.uint8)
    pixels = (np.nan_to_num(row).clip(0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([pixels, opaque], axis=2), "RGBA").save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png"), pixels.shape[1]


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
