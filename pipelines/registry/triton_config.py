"""What Triton must know of a model.onnx: its configuration and its class names, both from the file itself."""

from __future__ import annotations

import json
from pathlib import Path

from autolora.export.notes import notes_in
from autolora.export.runtime import image_shape, open_session, takes_bytes

MAX_BATCH = 64
QUEUE_MICROSECONDS = 2000  # how long a request may wait for others to share its batch


def labels(model: Path) -> list[str]:
    """Class names in the order of the logits; a name with a line break would move all that follow."""
    open_session(model)  # refuses what is no model
    found = json.loads(notes_in(model).get("classes", "[]"))
    return [str(label).replace("\n", " ") for label in found] or [str(i) for i in range(classes(model))]


def classes(model: Path) -> int:
    return int(open_session(model).get_outputs()[0].shape[1])


def config(model: Path, name: str, *, gpu: bool) -> str:
    session = open_session(model)
    pixels = "TYPE_UINT8" if takes_bytes(session) else "TYPE_FP32"
    dims = ", ".join(str(side) for side in image_shape(session))
    return f"""# Written by pipelines/registry/triton_config.py from the file's own input contract.
name: {json.dumps(name)}
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [{{ name: "image", data_type: {pixels}, dims: [ {dims} ] }}]
output [{{ name: "logits", data_type: TYPE_FP32, dims: [ {classes(model)} ], label_filename: "labels.txt" }}]
instance_group [{{ kind: {"KIND_GPU" if gpu else "KIND_CPU"}, count: 1 }}]
dynamic_batching {{ preferred_batch_size: [ 8, {MAX_BATCH} ], max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}
"""
