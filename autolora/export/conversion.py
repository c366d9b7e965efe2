"""A network as an ONNX graph, stripped of what differs between machines, and proof that the graph is that network.

exported = converted(model, (3, 224, 224))          # image float32 [n,3,h,w] in [0,1] -> logits
content = checked(exported, model, (3, 224, 224))   # the file's bytes, which have been run and answer as the module
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from autolora.common.errors import first_line
from autolora.export.runtime import logits, open_session

# Two kernels add the same float32 products in another order. The bound is relative to the largest logit; where they
# differ by more, the file holds another network.
NOISE = 1e-4
LARGEST = 2**31 - 1  # bytes of a protobuf message, and so of one ONNX file


class ExportError(ValueError):
    """A network that has no ONNX form, or whose ONNX form is another network."""


def converted(model: nn.Module, shape: tuple[int, int, int], pixels: str = "float32") -> onnx.ModelProto:
    """With `pixels="uint8"` image is uint8 [n,h,w,3], and the conversion in the graph."""
    _refuse_training(model)
    _refuse_size(model)
    exported = _convert(model, shape, pixels)
    _strip(exported)
    return exported


def traced(model: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """The same function by torch's older exporter: 3 MB of imports and not 140, a twentieth of the time.

    It knows fewer networks, and may leave torch one day. What it would make a constant (a branch on values) is refused.
    """
    _refuse_training(model)
    _refuse_size(model)
    written, axes = io.BytesIO(), {"image": {0: "batch"}, "logits": {0: "batch"}}
    graphs_unsaid = patch.object(torch._C, "_jit_onnx_log", lambda *_: None, create=True)
    with _quiet(model), torch.no_grad(), graphs_unsaid:
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.onnx.export(
            model,
            (_example(model, shape),),
            written,  # type: ignore[arg-type]  # the older exporter takes an open file
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes=axes,
        )
    return onnx.load_from_string(written.getvalue())


def checked(exported: onnx.ModelProto, model: nn.Module, shape: tuple[int, int, int]) -> bytes:
    """The file's content; it has been run, and answers as the module does."""
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


class FromBytes(nn.Module):
    """uint8 [n,h,w,3] -> the network on [0,1] pixels: no client can send 0..255 where 0..1 is meant."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.permute(0, 3, 1, 2).float() / 255)


def _convert(model: nn.Module, shape: tuple[int, int, int], pixels: str) -> onnx.ModelProto:
    example = _example(model, shape)
    if pixels == "uint8":
        model, example = FromBytes(model), example.mul(255).byte().permute(0, 2, 3, 1).contiguous()
    with _quiet(model):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    exported = program.model_proto
    if not exported.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ExportError(
            f"{_name(model)} exports for one batch size only: its forward fixes the number of images "
            "(a reshape with a number in place of -1 or x.shape[0], for instance)"
        )
    return exported


def _example(model: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.full((2, *shape), 0.5, device=device)


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """The exporters print their progress and half of a failed graph; what they stumble over is an ExportError."""
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise ExportError(f"{_name(model)} has no ONNX form: {_cause(error)}") from error


def _name(model: nn.Module) -> str:
    inner = model.model if isinstance(model, FromBytes) else model
    spec = getattr(inner, "spec", None)
    return f"backbone {spec.arch}" if spec is not None else type(inner).__name__


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause: what the exporter stumbled over, without its advice on filing bugs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


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


def _check_batches(model: nn.Module, content: bytes, shape: tuple[int, int, int]) -> None:
    """The file answers as the module does, on images and at batch sizes that it was not traced with."""
    images = np.rint(np.random.default_rng(0).random((4, *shape)) * 255).astype(np.float32) / 255
    session = open_session(content, threads=torch.get_num_threads())
    try:
        expected = torch_logits(model, images)
    except RuntimeError as error:
        raise ExportError(f"{_name(model)} takes no {len(images)} images: {_cause(error)}") from error
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
