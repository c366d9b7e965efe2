"""Smaller files of an exported network: fp16, and int8 (static for convolutional networks, dynamic for transformers).

    content = fp16(model);  content = int8(model, calibration)          # bytes of a file; `model` is a path

A smaller file is another network: it is never shipped under the accuracy of the first
(autolora/attacks/onnx_file.py).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from autolora.export.notes import set_notes
from autolora.export.order import put_in_order
from autolora.export.runtime import as_input, open_session

PORTABLE = True  # weights from -64 to 64: where a processor adds two products in 16 bits (x86 without VNNI), they fit
CALIBRATION = 256  # images that activations are scaled on; they are clean ones of the validation part


def fp16(model: str | Path) -> onnx.ModelProto:
    """Weights and arithmetic in half precision, input and logits as before."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    found = convert_float_to_float16(onnx.load(str(model)), keep_io_types=True)
    put_in_order(found.graph)  # the cast of the input would be the last node
    return found


def int8(model: str | Path, calibration: np.ndarray) -> onnx.ModelProto:
    """Weights in 8 bits, one scale per channel."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(model), str(prepared))
        if is_transformer(onnx.load(str(model))):
            _dynamic(prepared, quantised)
        else:
            _static(prepared, quantised, calibration)
        return onnx.load(str(quantised))


def calibration_rows(n: int) -> np.ndarray:
    """Drawn from all over: images of folders lie class by class, and those of arrays may take turns."""
    return np.sort(np.random.default_rng(0).permutation(n)[:CALIBRATION])


def known_to_break(variant: str, model: onnx.ModelProto) -> str:
    """Why this variant is not even tried on this network (measured: docs/log/19); empty where nothing is known.

    The channels of a depthwise convolution with its batch norm folded in differ in range by orders of magnitude, and
    activations have one scale for all of them. Where a layer norm follows (ConvNeXt), they do not.
    """
    operators = {node.op_type for node in model.graph.node}
    shapes = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    depthwise = any(_depthwise(node, shapes) for node in model.graph.node)
    if variant == "int8" and depthwise and "LayerNormalization" not in operators:
        return "depthwise convolutions with batch norm (MobileNet, EfficientNet) lose too much with 8-bit activations"
    return ""


def _depthwise(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> bool:
    """A filter for each channel."""
    if node.op_type != "Conv" or node.input[1] not in shapes:
        return False
    filters, channels, *_ = shapes[node.input[1]]
    return channels == 1 and filters > 1 and any(a.name == "group" and a.i > 1 for a in node.attribute)


def is_transformer(model: onnx.ModelProto) -> bool:
    """Attention needs a softmax; static scales then cost an order of magnitude in accuracy of the logits."""
    return any(node.op_type in ("Softmax", "Attention") for node in model.graph.node)


def _static(prepared: Path, quantised: Path, calibration: np.ndarray) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    session = open_session(prepared)
    name = session.get_inputs()[0].name
    images = as_input(session, calibration[calibration_rows(len(calibration))])
    batches = iter([{name: part} for part in np.array_split(images, -(-len(images) // 32))])

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(batches, None)

    quantize_static(
        str(prepared),
        str(quantised),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=PORTABLE,
    )


def _dynamic(prepared: Path, quantised: Path) -> None:
    """Scales of activations are found at run time, one for the whole batch: answers depend on who shares it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(prepared),
        str(quantised),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=PORTABLE,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def finished(model: onnx.ModelProto, notes: Mapping[str, str]) -> bytes:
    """With its own notes: what was measured on this file, never what was measured on another."""
    model.producer_name, model.producer_version = "autolora", ""
    set_notes(model, notes)
    return model.SerializeToString(deterministic=True)
