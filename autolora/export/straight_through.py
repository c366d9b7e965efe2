"""A quantised ONNX file as differentiable torch: rounding passes gradients straight through (Bengio et al., 2013).

    logits = StraightThrough("model.int8.onnx");  logits(pixels)        # any attack that needs gradients

onnxruntime has no gradients, so an attack on the file alone is a weak one. This reads the file's own graph, scales and
integers; what it finds must still fool the file itself to count. Integers travel as floats, exact up to 2^24.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

Attributes = dict[str, Any]


class StraightThrough:
    """A callable from float [n,3,h,w] in [0,1] to logits; refuses a graph with an operator that it does not know."""

    def __init__(self, path: str | Path) -> None:
        graph = onnx.load(str(path)).graph
        if unknown := {node.op_type for node in graph.node} - set(OPERATORS):
            raise ValueError(
                f"no straight-through form of {', '.join(sorted(unknown))}: the white-box attack is not run"
            )
        self.constants = {i.name: _tensor(i) for i in graph.initializer}
        self.nodes = [
            (OPERATORS[n.op_type], list(n.input), list(n.output), {a.name: _attribute(a) for a in n.attribute})
            for n in graph.node
        ]
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.bytes = graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8

    def __call__(self, pixels: Tensor) -> Tensor:
        values = dict(self.constants)
        values[self.input] = rounded(pixels * 255).permute(0, 2, 3, 1) if self.bytes else pixels
        for operator, inputs, outputs, attributes in self.nodes:
            found = operator(*[values[name] if name else None for name in inputs], **attributes)
            values.update(zip(outputs, found if isinstance(found, tuple) else (found,)))
        return values[self.output]


def _tensor(initializer: onnx.TensorProto) -> Tensor:
    """Quantised integers become floats; int64 is what shapes and axes are made of."""
    value = torch.from_numpy(numpy_helper.to_array(initializer).copy())
    return value if value.dtype in (torch.int64, torch.bool) else value.float()


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def rounded(x: Tensor) -> Tensor:
    """round(x) forwards, the identity backwards."""
    return x + (x.round() - x).detach()


def _along(parameter: Tensor | None, x: Tensor, axis: int) -> Tensor | float:
    """A scale or zero point per channel, shaped to meet x."""
    if parameter is None:
        return 0.0
    return (
        parameter
        if parameter.numel() == 1
        else parameter.view([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    )


def _quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, **_: Any) -> Tensor:
    return (rounded(x / _along(scale, x, axis)) + _along(zero, x, axis)).clamp(0, 255)  # activations are uint8


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, **_: Any) -> Tensor:
    return (x - _along(zero, x, axis)) * _along(scale, x, axis)


def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One scale for the whole tensor, and so for the whole batch."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round().clamp(0, 255)
    return (rounded(x / scale) + zero).clamp(0, 255), scale, zero


def _matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return (a - (0.0 if a_zero is None else a_zero)) @ (b - (0.0 if b_zero is None else b_zero))


def _padding(pads: list[int] | None, auto_pad: str) -> list[int]:
    """ONNX: all begins, then all ends; torch: the last axis first, begin and end together."""
    if auto_pad not in ("NOTSET", "VALID"):
        raise ValueError(f"no straight-through form of auto_pad {auto_pad}")
    if not pads:
        return []
    half = len(pads) // 2
    return [pad for axis in reversed(range(half)) for pad in (pads[axis], pads[axis + half])]


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
    **_: Any,
) -> Tensor:
    x = F.pad(x, _padding(pads, auto_pad))
    return F.conv2d(x, weight, bias, stride=strides or 1, dilation=dilations or 1, groups=group)


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
    **_: Any,
) -> Tensor:
    if any(_padding(pads, auto_pad)) and pads and pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
        raise ValueError("no straight-through form of an average pool that is padded on one side")
    padding = tuple(pads[: len(pads) // 2]) if pads else 0
    return F.avg_pool2d(x, kernel_shape, strides or 1, padding, bool(ceil_mode), bool(count_include_pad))


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    ceil_mode: int = 0,
    auto_pad: str = "NOTSET",
    **_: Any,
) -> Tensor:
    x = F.pad(x, _padding(pads, auto_pad), value=-torch.inf)
    return F.max_pool2d(x, kernel_shape, strides or 1, ceil_mode=bool(ceil_mode))


def _resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    coordinate_transformation_mode: str = "half_pixel",
    **_: Any,
) -> Tensor:
    if (mode, nearest_mode, coordinate_transformation_mode) != ("nearest", "floor", "asymmetric"):
        raise ValueError(f"no straight-through form of Resize {mode} {nearest_mode} {coordinate_transformation_mode}")
    if sizes is None and scales is not None:
        sizes = (torch.tensor(x.shape) * scales).long()
    assert sizes is not None
    return F.interpolate(x, size=[int(side) for side in sizes[2:].tolist()], mode="nearest")


def _pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, mode: str = "constant"
) -> Tensor:
    if mode != "constant":
        raise ValueError(f"no straight-through form of Pad {mode}")
    amounts, chosen = pads.long().tolist(), list(range(x.dim())) if axes is None else axes.long().tolist()
    by_axis = {axis % x.dim(): (amounts[i], amounts[i + len(chosen)]) for i, axis in enumerate(chosen)}
    flat = [side for axis in reversed(range(x.dim())) for side in by_axis.get(axis, (0, 0))]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1,
    beta: float = 1,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def _reduce_mean(x: Tensor, axes: Tensor | None = None, keepdims: int = 1, **_: Any) -> Tensor:
    dims = list(range(x.dim())) if axes is None else axes.long().tolist()
    return x.mean(dims, keepdim=bool(keepdims))


def _reshape(x: Tensor, shape: Tensor, allowzero: int = 0) -> Tensor:
    wanted = [int(side) for side in shape.tolist()]
    return x.reshape([x.shape[i] if side == 0 and not allowzero else side for i, side in enumerate(wanted)])


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    index: list[slice] = [slice(None)] * x.dim()
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
        axis = i if axes is None else int(axes[i])
        index[axis] = slice(int(start), min(int(end), x.shape[axis]), 1 if steps is None else int(steps[i]))
    return x[tuple(index)]


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(int(axis) for axis in axes.tolist()))


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(int(axis) for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    taken = x.index_select(axis, index.long().reshape(-1))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def _shape(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def _layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> tuple[Tensor]:
    shape = x.shape[axis % x.dim() :]
    return (F.layer_norm(x, shape, scale, bias, epsilon),)


def _cast(x: Tensor, to: int, **_: Any) -> Tensor:
    """Between number formats that floats stand for here, nothing is left to do."""
    return x.long() if to == onnx.TensorProto.INT64 else x.float()


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": torch.add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": lambda x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": torch.div,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Expand": lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Flatten": lambda x, axis=1: (
        x.flatten(axis) if axis == 1 else x.reshape(int(torch.tensor(x.shape[:axis]).prod()), -1)
    ),
    "Gather": _gather,
    "Gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "MatMul": torch.matmul,
    "MatMulInteger": _matmul_integer,
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Range": lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item()),
    "ReduceMean": _reduce_mean,
    "Relu": F.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Transpose": lambda x, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
}
