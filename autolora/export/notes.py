"""What an ONNX file says of itself: its notes, which are text by name, and what is theirs and not the graph's.

notes_in("model.onnx")["threat"]          # "linf:8/255"
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx


def notes_in(model: onnx.ModelProto | str | Path) -> dict[str, str]:
    """Of a model, or of a file; data outside of the file is not opened."""
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(str(model), load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def set_notes(model: onnx.ModelProto, notes: Mapping[str, str]) -> None:
    """These and no others, sorted, with the hash of the graph that they speak of."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(sorted({**notes, "graph_sha256": graph_sha256(model)}.items())))


def graph_sha256(model: onnx.ModelProto) -> str:
    """Of the graph and its weights, without the notes: a file damaged in one weight still opens, and shows here."""
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
