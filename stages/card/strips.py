"""The card's strips: an image, the perturbation, and how the sum was read.

for strip in strips(evidence): strip.truth, strip.seen, strip.picture
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from autolora.data.examples import magnified
from stages.evidence.canaries import answers
from stages.evidence.files import ONNX, Evidence

SHOWN = 12


@dataclass(frozen=True)
class Strip:
    truth: str
    seen: str  # what the model reads in the adversarial image
    picture: str  # PNG as data URI: clean | perturbation, magnified | adversarial
    width: int
    height: int


def strips(evidence: Evidence) -> list[Strip]:
    """Images that were classified correctly until they were attacked, from as many classes as there are."""
    classes = evidence.classes
    images, adversarial, found = evidence.examples
    if not found.any():
        return []
    broken, adversarial = images.only(found), adversarial[found]
    seen = answers(evidence.path(ONNX), adversarial).argmax(1)
    right = answers(evidence.path(ONNX), broken.floats).argmax(1) == broken.y
    order = _spread(broken.y, np.flatnonzero(right & (seen != broken.y)))
    return [
        Strip(classes[broken.y[i]], classes[seen[i]], *_strip(broken.floats[i], adversarial[i]), adversarial.shape[-2])
        for i in order[:SHOWN]
    ]


def _spread(labels: np.ndarray, candidates: np.ndarray) -> list[int]:
    """The first of each class, then the second of each class, and so on."""
    rank = {int(i): int((labels[candidates[:k]] == labels[i]).sum()) for k, i in enumerate(candidates)}
    return sorted(rank, key=lambda i: (rank[i], labels[i]))


def _strip(clean: np.ndarray, adversarial: np.ndarray) -> tuple[str, int]:
    """Three images in a row, a thin gap between them; the perturbation is scaled to the full range around grey."""
    from PIL import Image

    gap = np.full((3, clean.shape[1], max(1, clean.shape[2] // 16)), np.nan, np.float32)
    row = np.concatenate([clean, gap, magnified(clean, adversarial)[0], gap, adversarial], axis=2).transpose(1, 2, 0)
    opaque = np.where(np.isnan(row[..., :1]), 0, 255).astype(np.uint8)
    pixels = (np.nan_to_num(row).clip(0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([pixels, opaque], axis=2), "RGBA").save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png"), pixels.shape[1]


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
