"""A merged network as one ONNX file that carries its evidence; the same weights are the same bytes on any machine.

export_onnx(model, "model.onnx")                    # image float32 [n,3,h,w] in [0,1] -> logits
export_onnx(model, "model.onnx", pixels="uint8")    # image uint8 [n,h,w,3], the conversion in the graph

python -m autolora.export --show model.onnx         # what the file says about itself
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from autolora.files import write_bytes
from autolora.runtime import BadModel, logits, open_session
from autolora.statistics import wilson

PIXELS = ("float32", "uint8")
# Two kernels add the same float32 products in another order. The bound is relative to the largest logit; where they
# differ by more, the file holds another network.
NOISE = 1e-4
LARGEST = 2**31 - 1  # bytes of a protobuf message, and so of one ONNX file


class ExportError(ValueError):
    """A network that has no ONNX form, or whose ONNX form is another network."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    evidence: Mapping[str, str] | None = None,
    pixels: str = "float32",
    image_size: int | None = None,
) -> str:
    """Write one file, whole or not at all; returns its sha256. `image_size` is for modules that are no Classifier."""
    if pixels not in PIXELS:
        raise ValueError(f"export.input is {pixels!r}: expected one of {', '.join(PIXELS)}")
    content = as_onnx(model, _image_shape(model, image_size), evidence, pixels)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def as_onnx(
    model: nn.Module, shape: tuple[int, int, int], evidence: Mapping[str, str] | None = None, pixels: str = "float32"
) -> bytes:
    """The file's content; it has been run, and answers as the module does."""
    _refuse_training(model)
    _refuse_size(model)
    exported = _convert(model, shape, pixels)
    _strip(exported)
    _annotate(exported, dict(evidence or {}), shape, pixels)
    content = exported.SerializeToString(deterministic=True)
    _check_batches(model, content, shape)
    return content


def _refuse_training(model: nn.Module) -> None:
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ExportError(
            f"{len(training)} modules are in training mode ({', '.join(training[:3])}, ...): dropout and batch "
            "statistics would be part of the file; call model.eval() first"
        )


def _refuse_size(model: nn.Module) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > LARGEST:
        raise ExportError(f"{_name(model)} has {size / 1e9:.1f} GB of weights: one ONNX file holds 2.1 GB at most")


def _image_shape(model: nn.Module, image_size: int | None) -> tuple[int, int, int]:
    spec = getattr(model, "spec", None)
    size = getattr(spec, "image_size", None) if image_size is None else image_size
    if size is None:
        raise ExportError(f"{type(model).__name__} does not say how large its images are: pass image_size")
    return getattr(spec, "channels", 3), size, size


class FromBytes(nn.Module):
    """uint8 [n,h,w,3] -> the network on [0,1] pixels: no client can send 0..255 where 0..1 is meant."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.permute(0, 3, 1, 2).float() / 255)


def _convert(model: nn.Module, shape: tuple[int, int, int], pixels: str) -> onnx.ModelProto:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = torch.full((2, *shape), 0.5, device=device)
    if pixels == "uint8":
        model, example = FromBytes(model), example.mul(255).byte().permute(0, 2, 3, 1).contiguous()
    quiet = io.StringIO()  # the exporter prints its progress and half of a failed graph
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"{_name(model)} has no ONNX form: {_cause(error)}") from error
    assert program is not None
    exported = program.model_proto
    if not exported.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(
            f"{_name(model)} exports for one batch size only: its forward fixes the number of images "
            "(a reshape with a number in place of -1 or x.shape[0], for instance)"
        )
    return exported


def _name(model: nn.Module) -> str:
    inner = model.model if isinstance(model, FromBytes) else model
    spec = getattr(inner, "spec", None)
    return f"backbone {spec.arch}" if spec is not None else type(inner).__name__


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause: what the exporter stumbled over, without its advice on filing bugs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _strip(exported: onnx.ModelProto) -> None:
    """Remove what differs between machines: stack traces hold absolute paths, the producer holds the build of torch."""
    graph = exported.graph
    for part in (exported, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in exported.functions:
        for part in (function, *function.node, *function.value_info):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    exported.producer_name, exported.producer_version = "autolora", ""


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
    onnx.helper.set_model_props(
        exported,
        dict(sorted({**evidence, "input": as_text(contract), "graph_sha256": graph_sha256(exported)}.items())),
    )


def graph_sha256(exported: onnx.ModelProto) -> str:
    """Of the graph and its weights, without the notes: a file damaged in one weight still opens, and shows here."""
    return hashlib.sha256(exported.graph.SerializeToString(deterministic=True)).hexdigest()


def as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _check_batches(model: nn.Module, content: bytes, shape: tuple[int, int, int]) -> None:
    """The file answers as the module does, on images and at batch sizes that it was not traced with."""
    images = np.rint(np.random.default_rng(0).random((4, *shape)) * 255).astype(np.float32) / 255
    session, expected = open_session(content, threads=torch.get_num_threads()), torch_logits(model, images)
    for batch in (1, 3):
        try:
            difference = float(np.abs(logits(session, images, batch) - expected).max())
        except Exception as error:
            raise ExportError(f"{_name(model)}: the exported file fails at batch {batch}: {_cause(error)}") from error
        if not difference <= noise(expected):
            raise ExportError(
                f"{_name(model)}: the exported file is another network: logits differ by {difference:.2g} at batch "
                f"{batch}, more than rounding explains ({noise(expected):.1g}). A value that forward computes outside "
                "of torch, or at random, becomes a constant of the file."
            )


@torch.no_grad()
def torch_logits(model: nn.Module, images: np.ndarray, batch: int = 256) -> np.ndarray:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [model(part.to(device)).float().cpu() for part in torch.from_numpy(images).split(batch)]
    return torch.cat(parts).numpy()


def noise(expected: np.ndarray) -> float:
    """The largest difference of two logits that the order of additions in float32 explains."""
    return NOISE * max(1.0, float(np.abs(expected).max(initial=0)))


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
    said = {entry.key: entry.value for entry in exported.metadata_props}
    if "graph_sha256" in said and said["graph_sha256"] != graph_sha256(exported):
        raise BadModel(f"{path} is damaged: its weights are not those that were exported (graph_sha256 differs)")
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    return {
        "file": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)},
        "image": f"{image.type} {image.shape}",
        output.name: f"{output.type} {output.shape}",
        "opset": opset(exported),
        **{key: _parsed(value) for key, value in sorted(said.items())},
    }


def opset(exported: onnx.ModelProto) -> int:
    return next(entry.version for entry in exported.opset_import if entry.domain in ("", "ai.onnx"))


def _parsed(text: str) -> Any:
    return json.loads(text) if text[:1] in ("{", "[") else text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m autolora.export", description="What a model.onnx says of itself.")
    parser.add_argument("--show", metavar="MODEL", required=True, help="an exported .onnx file")
    try:
        told = show(parser.parse_args().show)
    except (BadModel, OSError) as error:
        sys.exit(f"export: {error}")
    with contextlib.suppress(BrokenPipeError):  # ... | head
        print(json.dumps(told, indent=2, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
