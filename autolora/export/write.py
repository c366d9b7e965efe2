"""A merged network as one ONNX file that carries its evidence; the same weights are the same bytes on any machine.

export_onnx(model, "model.onnx")                    # image float32 [n,3,h,w] in [0,1] -> logits
export_onnx(model, "model.onnx", pixels="uint8")    # image uint8 [n,h,w,3], the conversion in the graph

python -m autolora.export --show model.onnx               # what the file says about itself
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from autolora.common.command_line import Command
from autolora.common.errors import BadArgument, Words
from autolora.common.files import write_bytes
from autolora.common.statistics import wilson
from autolora.export.conversion import ExportError, checked, converted
from autolora.export.notes import graph_sha256, notes_in, set_notes
from autolora.export.runtime import BadModel, open_session

PIXELS = ("float32", "uint8")


def export_onnx(
    model: nn.Module,
    path: str | Path,
    evidence: Mapping[str, str] | None = None,
    *,
    pixels: str = "float32",
    image_size: int | None = None,
) -> str:
    """Write one file, whole or not at all; returns its sha256. `image_size` is for modules that are no Classifier."""
    if pixels not in PIXELS:
        raise BadArgument("pixels", pixels, f"expected one of {', '.join(PIXELS)}")
    if not isinstance(model, nn.Module):
        cure = "merge it first: autolora.merge(tuned)" if hasattr(model, "branch") else "expected a torch.nn.Module"
        raise BadArgument("model", Words(f"a {type(model).__name__}"), cure)
    shape = _image_shape(model, image_size)
    exported = converted(model, shape, pixels)
    _annotate(exported, dict(evidence or {}), shape, pixels)
    content = checked(exported, model, shape)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _image_shape(model: nn.Module, image_size: int | None) -> tuple[int, int, int]:
    spec = getattr(model, "spec", None)
    size = getattr(spec, "image_size", None) if image_size is None else image_size
    if size is None:
        raise ExportError(f"{type(model).__name__} does not say how large its images are: pass image_size")
    return getattr(spec, "channels", 3), size, size


def _annotate(exported: onnx.ModelProto, evidence: dict[str, str], shape: tuple[int, int, int], pixels: str) -> None:
    channels, height, width = shape
    contract = {
        "name": "image",
        "dtype": pixels,
        "shape": ["n", height, width, channels] if pixels == "uint8" else ["n", channels, height, width],
        "layout": "NHWC" if pixels == "uint8" else "NCHW",
        "colour": "RGB" if channels == 3 else f"{channels} channels",
        "range": [0, 255] if pixels == "uint8" else [0, 1],
    }
    set_notes(exported, {**evidence, "input": as_text(contract)})


def as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def evidence(robustness: Mapping[str, Any], classes: list[str], licence: str, **more: str) -> dict[str, str]:
    """What the file says about itself, from the record of the attack; every value is text, JSON where it has parts."""
    n = robustness["data"]["n"]
    clean = robustness["clean_accuracy"]
    return {
        "classes": as_text(classes),
        "threat": robustness["threat"]["text"],
        "clean_accuracy": as_text({"value": clean, "n": n, "ci95": _rounded(wilson(round(clean * n), n))}),
        "robust_accuracy": as_text(
            {"value": robustness["robust_accuracy"], "n": n, "ci95": _rounded(robustness["ci95"])}
        ),
        "attack": robustness["version"],
        "alpha": str(robustness["alpha"]),
        "weights_sha256": robustness["weights_sha256"],
        "data_sha256": robustness["data"]["ids_sha256"],
        "license": licence,
        **more,
    }


def _rounded(interval: Any) -> list[float]:
    return [round(float(bound), 6) for bound in interval]


def show(path: str | Path) -> dict[str, Any]:
    """All that the file says about itself; refuses a damaged one."""
    session, content = open_session(path), Path(path).read_bytes()
    exported = onnx.load_from_string(content)
    said = notes_in(exported)
    if "graph_sha256" in said and said["graph_sha256"] != graph_sha256(exported):
        raise BadModel(f"{path} is damaged: its weights are not those that were exported (graph_sha256 differs)")
    image = session.get_inputs()[0]
    return {
        "file": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)},
        "image": f"{image.type} {image.shape}",
        **{output.name: f"{output.type} {output.shape}" for output in session.get_outputs()},
        "opset": opset(exported),
        **{key: _parsed(value) for key, value in sorted(said.items())},
    }


def opset(exported: onnx.ModelProto) -> int:
    return next(entry.version for entry in exported.opset_import if entry.domain in ("", "ai.onnx"))


def _parsed(text: str) -> Any:
    """What others wrote may begin so, and be no JSON: a dictionary as Python prints it."""
    try:
        return json.loads(text) if text[:1] in ("{", "[") else text
    except ValueError:
        return text


def main() -> None:
    parser = Command(
        "What a model.onnx says of itself: shapes, hashes, evidence.", reads="MODEL", writes="JSON on stdout"
    )
    parser.add_argument("--show", metavar="MODEL", required=True, help="an exported .onnx file")
    try:
        told = show(parser.parse_args().show)
    except (BadModel, OSError) as error:
        sys.exit(f"export: {error}")
    with contextlib.suppress(BrokenPipeError):  # ... | head
        print(json.dumps(told, indent=2, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
