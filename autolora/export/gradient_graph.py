"""The derivative of an ONNX graph in its images, as two graphs: what torch's autograd does, in onnxruntime's kernels.

    forward, backward = derived(model)
    forward:   image -> logits, and behind them the activations that the derivative asks for
    backward:  slope of the logits, these activations -> slope of the image

It knows what convolutional networks with ReLUs are made of; another operator is an Underivable. The graph is read from
its end to its beginning, and each operator writes down what it does to a slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

SLOPE = "slope"
STEEP = np.float32(1e38)  # times what is positive it is beyond 1, whatever is positive


class Underivable(ValueError):
    """A graph with an operator that has no rule here."""


@dataclass
class Backward:
    """What has been written of the second graph."""

    weights: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]  # of one image
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    kept: dict[str, None] = field(default_factory=dict)  # activations of the first graph, in order

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{SLOPE}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: np.ndarray | np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def keep(self, name: str) -> str:
        self.kept[name] = None
        return name

    def weight(self, name: str) -> np.ndarray:
        if name not in self.weights:
            raise Underivable(f"{name} is no constant")
        return self.weights[name]

    def shape(self, name: str) -> tuple[int, ...]:
        if not all(self.shapes.get(name, (0,))):
            raise Underivable(f"the shape of {name} is not known")
        return self.shapes[name]


def derived(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    image, logits = graph.input[0], graph.output[0]
    back = Backward(_weights(graph), {v.name: _shape(v) for v in (*graph.value_info, *graph.input, *graph.output)})
    slopes = {logits.name: SLOPE}
    for node in reversed(graph.node):
        if (d := slopes.get(node.output[0])) is None:
            continue  # leads to no logit
        if node.op_type not in RULES or node.domain not in ("", "ai.onnx"):
            raise Underivable(f"no rule for {node.op_type}")
        for name, slope in RULES[node.op_type](back, node, d).items():
            slopes[name] = back.emit("Add", slopes[name], slope) if name in slopes else slope
    if image.name not in slopes:
        raise Underivable("no slope arrives at the image")
    return _forward(model, back), _backward(model, back, slopes[image.name])


def _weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Initialisers and constants; what torch's older exporter finds twice, it writes once and an Identity."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and "value" in (a := _attributes(node)):
            weights[node.output[0]] = numpy_helper.to_array(a["value"])
        elif node.op_type == "Identity" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    return weights


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Zeros for what is not known; the first dimension is the batch."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])


def _attributes(node: NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _forward(model: onnx.ModelProto, back: Backward) -> onnx.ModelProto:
    forward = onnx.ModelProto()
    forward.CopyFrom(model)
    forward.graph.output.extend(_value(name) for name in back.kept)
    return forward


def _backward(model: onnx.ModelProto, back: Backward, slope: str) -> onnx.ModelProto:
    inputs = [_value(name) for name in (SLOPE, *back.kept)]
    graph = helper.make_graph(back.nodes, "derivative", inputs, [_value(slope)], back.constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)


def _same(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    return {node.input[0]: d}


def _relu(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    """Times 1 where something came out, else 0. (Sign and Where take onnxruntime four times as long.)"""
    steep = back.emit("Mul", back.keep(node.output[0]), back.constant(STEEP))
    passed = back.emit("Clip", steep, back.constant(np.float32(0)), back.constant(np.float32(1)))
    return {node.input[0]: back.emit("Mul", d, passed)}


def _add(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    terms = [name for name in node.input if name not in back.weights]
    if len(set(terms)) < len(terms) or any(back.shape(name) != back.shape(node.output[0]) for name in terms):
        raise Underivable("a sum of one thing with itself, or with something of another shape")
    return dict.fromkeys(terms, d)


def _sub(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    back.weight(node.input[1])
    return _add(back, node, d)


def _times(back: Backward, node: NodeProto, d: str, factor: np.ndarray) -> dict[str, str]:
    if back.shape(node.input[0]) != back.shape(node.output[0]):
        raise Underivable("a product that is larger than its factor")
    return {node.input[0]: back.emit("Mul", d, back.constant(factor))}


def _mul(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    return _times(back, node, d, back.weight(node.input[1]))


def _div(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    return _times(back, node, d, 1 / back.weight(node.input[1]))


def _norm(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    scale, _, _, variance = (back.weight(name) for name in node.input[1:])
    factor = scale / np.sqrt(variance + np.float32(_attributes(node).get("epsilon", 1e-5)))
    return _times(back, node, d, factor.reshape(-1, *[1] * (len(back.shape(node.input[0])) - 1)))


def _reshape(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    return {node.input[0]: back.emit("Reshape", d, back.constant(np.array([-1, *back.shape(node.input[0])])))}


def _gemm(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    a, weight = _attributes(node), back.weight(node.input[1])
    if a.get("transA"):
        raise Underivable("Gemm of a transposed activation")
    weight = a.get("alpha", 1.0) * (weight if a.get("transB") else weight.T)
    return {node.input[0]: back.emit("Gemm", d, back.constant(weight.astype(np.float32)))}


def _matmul(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    weight = back.weight(node.input[1])
    if weight.ndim != 2:
        raise Underivable("a product of more than matrices")
    return {node.input[0]: back.emit("MatMul", d, back.constant(weight.T))}


def _window(node: NodeProto) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and the padding at each side: top, left, bottom, right."""
    a = _attributes(node)
    if a.get("auto_pad", b"NOTSET") != b"NOTSET" or a.get("ceil_mode") or len(a.get("kernel_shape", [])) != 2:
        raise Underivable("a window that is padded by itself, or not in the plane")
    return a.get("strides", [1, 1]), a.get("dilations", [1, 1]), a.get("pads", [0] * 4)


def _conv(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    """Without strides a convolution again, for which onnxruntime has its fastest kernels."""
    weight, group = back.weight(node.input[1]), _attributes(node).get("group", 1)
    (strides, dilations, pads), sides = _window(node), list(weight.shape[2:])
    if strides == dilations == [1, 1] and group == 1 and all(p < k for p, k in zip(pads, sides * 2)):
        flipped = weight.swapaxes(0, 1)[:, :, ::-1, ::-1]
        pads = [k - 1 - p for p, k in zip(pads, sides * 2)]
        return {node.input[0]: back.emit("Conv", d, back.constant(flipped), kernel_shape=sides, pads=pads)}
    return _spread(back, node, d, weight, group)


def _pool(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    """An average pool is a convolution of each channel with a constant."""
    a, (_, _, pads), (channels, *_) = _attributes(node), _window(node), back.shape(node.input[0])
    if any(pads) and not a.get("count_include_pad"):
        raise Underivable("an average pool whose windows differ in size")
    window = np.full((channels, 1, *a["kernel_shape"]), 1 / prod(a["kernel_shape"]), np.float32)
    return _spread(back, node, d, window, channels)


def _spread(back: Backward, node: NodeProto, d: str, weight: np.ndarray, group: int) -> dict[str, str]:
    """The transposed convolution, as large as what went in: what no window reached is left over at the end."""
    (strides, dilations, pads), sides = _window(node), list(weight.shape[2:])
    before, after = back.shape(node.input[0])[1:], back.shape(node.output[0])[1:]
    reach = [s * (n - 1) + r * (k - 1) + 1 for s, n, r, k in zip(strides, after, dilations, sides, strict=True)]
    left = [n + p + q - size for n, p, q, size in zip(before, pads[:2], pads[2:], reach)]
    slope = back.emit(
        "ConvTranspose",
        d,
        back.constant(weight),
        kernel_shape=sides,
        strides=strides,
        pads=pads,
        dilations=dilations,
        group=group,
        output_padding=left,
    )
    return {node.input[0]: slope}


def _mean(back: Backward, node: NodeProto, d: str) -> dict[str, str]:
    """Of each channel, over the whole plane."""
    shape = back.shape(node.input[0])
    axes = back.weight(node.input[1]).tolist() if len(node.input) > 1 else _attributes(node).get("axes", [2, 3])
    if len(shape) != 3 or sorted(axis % 4 for axis in axes) != [2, 3]:
        raise Underivable("a mean over something else than the plane")
    channels, height, width = shape
    each = back.emit("Reshape", d, back.constant(np.array([-1, channels, 1, 1])))
    share = np.full((1, 1, height, width), 1 / (height * width), np.float32)
    return {node.input[0]: back.emit("Mul", each, back.constant(share))}


Rule = Callable[[Backward, NodeProto, str], dict[str, str]]  # the slope of the output -> that of each input
RULES: dict[str, Rule] = {
    "Identity": _same,
    "Relu": _relu,
    "Add": _add,
    "Sub": _sub,
    "Mul": _mul,
    "Div": _div,
    "BatchNormalization": _norm,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "AveragePool": _pool,
    "GlobalAveragePool": _mean,
    "ReduceMean": _mean,
}
