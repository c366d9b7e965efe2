"""Stored images on which the ONNX file's answers are known: what it answers here it must answer anywhere.

x, logits, ids = canaries(evidence)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from autolora.export.runtime import logits, open_session
from stages.evidence.files import ONNX, Evidence

CANARY_IMAGES = 6
TOLERANCE = 5e-3  # logits move about 1e-5 between processors, 1e-3 with TF32, and by units when the file is another


def answers(path: str | Path, x: np.ndarray) -> np.ndarray:
    """Logits of a batch of pixels in [0,1], by onnxruntime on the processor."""
    return logits(_session(str(path), Path(path).stat().st_mtime_ns), x)


@cache
def _session(path: str, _changed: int) -> Any:
    return open_session(path)


def canaries(evidence: Evidence) -> dict[str, np.ndarray]:
    """A few clean and adversarial images, spread over the stored ones, and what the file answers."""
    images, adversarial, _ = evidence.examples
    picked = np.unique(np.linspace(0, len(images) - 1, CANARY_IMAGES).astype(int))
    chosen = images.only(picked)
    x = np.concatenate([chosen.floats, adversarial[picked]])
    return {"x": x, "logits": answers(evidence.path(ONNX), x), "ids": np.array(chosen.ids * 2, "S64")}


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
