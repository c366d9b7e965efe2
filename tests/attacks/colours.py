"""A foreign ONNX file whose robustness is known: it says which colour is strongest on the average.

An image of colour y stands linf:eps exactly where mean(y) - mean(another) > 2 eps, as long as no pixel meets 0 or 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, NAMES = 8, ["red", "green", "blue"]


def images(n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n,3,8,8] and labels; margins from 2/255 to 40/255 or so."""
    draw = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = draw.integers(100, 140, (n, 3, SIZE, SIZE))
    x[np.arange(n), y] += np.linspace(6, 40, n).astype(int)[:, None, None]
    return x.astype(np.uint8), y


def stands(x: np.ndarray, y: np.ndarray, eps: float) -> np.ndarray:
    """What any attack must come to, away from the very boundary."""
    means = x.astype(np.float64).mean((2, 3)) / 255
    others = np.where(np.eye(3, dtype=bool)[y], -1, means).max(1)
    return means[np.arange(len(y)), y] - others > 2 * eps


def nodes_on(image: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("GlobalAveragePool", [image], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
    ]


def write(path: Path, form: str = "float", batch: int | str = "n") -> Path:
    """`form`: float, half, nhwc, bytes, softmax, wants255 or nan."""
    shape, kind, before, output = [batch, 3, SIZE, SIZE], TensorProto.FLOAT, [], "logits"
    image, scale = "image", 255.0 if form != "wants255" else 1.0
    number = np.float16 if form == "half" else np.float32
    more: list[onnx.TensorProto] = []
    if form == "half":
        kind = TensorProto.FLOAT16
    if form in ("nhwc", "bytes"):
        shape = [batch, SIZE, SIZE, 3]
        before.append(helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 3, 1, 2]))
        image = "turned"
    if form == "bytes":
        kind = TensorProto.UINT8
        more = [numpy_helper.from_array(np.float32(255), "levels")]
        before += [helper.make_node("Cast", ["turned"], ["whole"], to=TensorProto.FLOAT)]
        before += [helper.make_node("Div", ["whole", "levels"], ["unit"])]
        image = "unit"
    after = []
    if form == "softmax":
        after, output = [helper.make_node("Softmax", ["logits"], ["shares"])], "shares"
    if form == "nan":
        after, output = [helper.make_node("Sqrt", ["negative"], ["nan"])], "nan"
        after.insert(0, helper.make_node("Neg", ["logits"], ["negative"]))
    weights = [numpy_helper.from_array(0.1 * scale * np.eye(3, dtype=number), "w")]
    weights += [numpy_helper.from_array(np.zeros(3, number), "b")]
    weights = [numpy_helper.from_array(numpy_helper.to_array(w).astype(number), w.name) for w in weights]
    out_kind = TensorProto.FLOAT16 if form == "half" else TensorProto.FLOAT
    graph = helper.make_graph(
        [*before, *nodes_on(image), *after],
        "colours",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info(output, out_kind, [batch, 3])],
        [*weights, *more],
    )
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, str(path))
    return path
