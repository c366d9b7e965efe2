"""Smaller files beside model.onnx, each under its own numbers, and none that loses more robustness than allowed.

make("int8", model, ...)  ->  {"written": true, "clean_accuracy": ..., "robust_accuracy": ..., "bytes": ...}
                              {"written": false, "reason": "..."}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from autolora.common.errors import first_line
from autolora.common.files import write_bytes
from autolora.data.examples import Examples
from autolora.export.quantise import finished, fp16, int8, known_to_break
from autolora.export.runtime import logits, open_session
from autolora.export.write import as_text
from autolora.threat import Threat
from stages.evaluation.onnx_robustness import FileRobustness, measure, with_gradients


class Ingredients(NamedTuple):
    """What every variant is made from and measured with."""

    model: Path  # model.onnx
    notes: dict[str, str]
    base: FileRobustness  # of model.onnx
    examples: Examples
    calibration: np.ndarray  # clean validation images, float32 [n,3,h,w]
    threat: Threat
    seed: int
    limit: int
    max_drop: float  # points of robust accuracy
    folder: Path


def make(name: str, given: Ingredients, target: Path) -> dict[str, Any]:
    """Write `target`/model.<name>.onnx where it is good enough; where it is not, the record and a line say why."""
    record = _made(name, given, target)
    if not record["written"]:
        print(f"export: model.{name}.onnx is not written: {record['reason']}")
    return record


def _made(name: str, given: Ingredients, target: Path) -> dict[str, Any]:
    if reason := known_to_break(name, onnx.load(str(given.model))):
        return {"written": False, "reason": f"{name} is known to break this network: {reason}"}
    trial = given.folder / f"model.{name}.onnx"
    try:
        variant = fp16(given.model) if name == "fp16" else int8(given.model, given.calibration)
        write_bytes(trial, finished(variant, {}))
        found = _measured(name, trial, given)
    except OSError:
        raise
    except Exception as error:
        reason = first_line(error).replace(str(trial), trial.name)  # no path of this machine in a report
        return {"written": False, "reason": f"{name} does not work on this network: {reason}"}
    record = _record(found, trial, given)
    drop = 100 * (given.base.robust - found.robust)
    if not drop <= given.max_drop:
        reason = f"loses {drop:.2f} points of robust accuracy; export.max_robust_drop allows {given.max_drop:g}"
        return {"written": False, "reason": reason, **record}
    content = finished(variant, notes_of(name, given, found))
    write_bytes(target / trial.name, content)
    return {"written": True, "reason": None, **record, "bytes": len(content)}


def _measured(name: str, trial: Path, given: Ingredients) -> FileRobustness:
    found = measure(trial, given.examples, given.threat, given.seed, given.limit, given.folder)
    return with_gradients(trial, found, given.examples, given.threat, given.seed) if name == "int8" else found


def _record(found: FileRobustness, trial: Path, given: Ingredients) -> dict[str, Any]:
    return {
        "clean_accuracy": round(found.clean, 6),
        "robust_accuracy": found.robust,
        "robust_accuracy_of_model": given.base.robust,
        "bytes": trial.stat().st_size,
        "depends_on_batch": depends_on_batch(trial, given.examples.images.floats[:64]),
        **found.record,
    }


def depends_on_batch(path: Path, images: np.ndarray) -> int:
    """How many of these labels change when an image is asked about alone: dynamic scales are found per batch."""
    session = open_session(path)
    return int((logits(session, images, 1).argmax(1) != logits(session, images, 64).argmax(1)).sum())


def notes_of(name: str, given: Ingredients, found: FileRobustness) -> dict[str, str]:
    """The notes of model.onnx with this file's own numbers: replay, Square and (int8) APGD are a weaker test."""
    n = len(given.examples.images)
    return {key: value for key, value in given.notes.items() if key != "graph_sha256"} | {
        "variant": name,
        "attack": "stored adversarial examples, Square"
        + (", APGD-CE and APGD-T straight through" if name == "int8" else ""),
        "clean_accuracy": as_text({"value": round(found.clean, 6), "n": n}),
        "robust_accuracy": as_text({"value": found.robust, "n": n, "attacked": len(found.rows)}),
    }
