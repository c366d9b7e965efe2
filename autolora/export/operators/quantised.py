"""Operators of graphs in 8 bits, static (QDQ and QOperator) and dynamic, as onnxruntime's quantiser writes them.

A quantised activation travels as whole numbers in floats, exact up to 2^24, so that gradients pass: each rounding is
the identity backwards. Weights, scales and zero points keep their types, which say how far the numbers go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor

from autolora.export.operators.arithmetic import gemm
from autolora.export.operators.layers import average_pool, conv
from autolora.export.operators.shapes import NoRule, straight

RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.int16: (-32768, 32767),
    torch.uint16: (0, 65535),
    torch.int32: (-(2**31), 2**31 - 1),
}
TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
}


def rounded(x: Tensor) -> Tensor:
    """round(x) forwards, the identity backwards."""
    return straight(x, x.round())


def _along(parameter: Tensor | None, x: Tensor, axis: int) -> Tensor | float:
    """A scale or zero point per channel, shaped to meet x."""
    if parameter is None:
        return 0.0
    if parameter.numel() == 1:
        return parameter.float().reshape(())
    return parameter.float().view([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    output_dtype: int = 0,
    block_size: int = 0,
    **_: Any,
) -> Tensor:
    if block_size:
        raise NoRule("QuantizeLinear in blocks")
    kind = TYPES.get(output_dtype, torch.uint8) if zero is None else zero.dtype
    low, high = RANGES[kind]
    return (rounded(x.float() / _along(scale, x, axis)) + _along(zero, x, axis)).clamp(low, high)


def dequantize(
    x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1, block_size: int = 0, **_: Any
) -> Tensor:
    if block_size:
        raise NoRule("DequantizeLinear in blocks")
    return (x.float() - _along(zero, x, axis)) * _along(scale, x, axis)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One scale for the whole tensor, and so for the whole batch."""
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-low / scale).round().clamp(0, 255)
    return (rounded(x / scale) + zero).clamp(0, 255), scale, zero.to(torch.uint8)


def _centred(x: Tensor, zero: Tensor | None) -> Tensor:
    return x.float() if zero is None else x.float() - zero.float()


def _rows(zero: Tensor | None, filters: Tensor) -> Tensor | None:
    """One zero point for each filter."""
    return zero if zero is None or zero.numel() == 1 else zero.view(-1, *[1] * (filters.dim() - 1))


def matmul_integer(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    return _centred(a, a_zero) @ _centred(b, b_zero)


def conv_integer(
    x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None, **around: Any
) -> Tensor:
    return conv(_centred(x, x_zero), _centred(weight, _rows(w_zero, weight)), **around)


def qlinear_conv(*inputs: Tensor | None, **around: Any) -> Tensor:
    """x, weight, then the scale and zero point of what comes out, and a bias in whole numbers."""
    (x, x_scale, x_zero), (weight, w_scale, w_zero) = _quantised(inputs, 2)
    y_scale, y_zero, bias = _padded(inputs[6:])
    assert y_scale is not None
    whole = None if bias is None else bias.float()
    total = conv(_centred(x, x_zero), _centred(weight, _rows(w_zero, weight)), whole, **around)
    return quantize(total * _along(x_scale * w_scale, total, 1), y_scale, y_zero)


def qlinear_matmul(*inputs: Tensor | None) -> Tensor:
    (a, a_scale, a_zero), (b, b_scale, b_zero) = _quantised(inputs, 2)
    y_scale, y_zero, _ = _padded(inputs[6:])
    assert y_scale is not None
    return quantize(matmul_integer(a, b, a_zero, b_zero) * (a_scale * b_scale), y_scale, y_zero)


def qgemm(*inputs: Tensor | None, alpha: float = 1.0, **turned: Any) -> Tensor:
    """a, b, a bias in whole numbers, and what comes out; without a scale of its own that is a float."""
    (a, a_scale, a_zero), (b, b_scale, b_zero) = _quantised(inputs, 2)
    c, y_scale, y_zero = _padded(inputs[6:])
    right = _centred(b, _rows(b_zero, b) if turned.get("transB") else b_zero)
    total = gemm(_centred(a, a_zero), right, None if c is None else c.float(), **turned)
    total = total * (alpha * a_scale * b_scale)
    return total if y_scale is None else quantize(total, y_scale, y_zero)


def _quantised(inputs: tuple[Tensor | None, ...], count: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Each value with its scale and its zero point."""
    return [inputs[3 * k : 3 * k + 3] for k in range(count)]  # type: ignore[misc]


def _padded(inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    first, second, third = (*inputs, None, None, None)[:3]
    return first, second, third


def pairwise(act: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def meet(*inputs: Tensor | None) -> Tensor:
        a, b = (dequantize(*each) for each in _quantised(inputs, 2))
        y_scale, y_zero, _ = _padded(inputs[6:])
        assert y_scale is not None
        return quantize(act(a, b), y_scale, y_zero)

    return meet


def single(act: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of one quantised value: a float in between."""

    def alone(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor | None,
        y_scale: Tensor,
        y_zero: Tensor | None = None,
        *,
        channels_last: int = 0,
        opset: int = 13,
        **attributes: Any,
    ) -> Tensor:
        if channels_last or opset < 13:
            raise NoRule("a quantised operator with channels last, or of an opset before 13")
        return quantize(act(dequantize(x, x_scale, x_zero), **attributes), y_scale, y_zero)

    return alone


def qlinear_concat(y_scale: Tensor, y_zero: Tensor, *parts: Tensor, axis: int) -> Tensor:
    floats = [dequantize(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return quantize(torch.cat(floats, axis), y_scale, y_zero)


def matmul_integer_to_float(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, *rest: Tensor | None) -> Tensor:
    """`rest`: the zero points of a and b, and a bias."""
    a_zero, b_zero, bias = _padded(rest)
    product = matmul_integer(a, b, a_zero, b_zero) * (a_scale * b_scale)
    return product if bias is None else product + bias


def dynamic_quantize_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    whole, scale, zero = dynamic_quantize(a)
    return matmul_integer_to_float(whole, b, scale, b_scale, zero, b_zero, bias)


OPERATORS: dict[str, Callable[..., Any]] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "MatMulInteger": matmul_integer,
    "MatMulIntegerToFloat": matmul_integer_to_float,
    "QGemm": qgemm,
    "QLinearAdd": pairwise(torch.add),
    "QLinearAveragePool": single(average_pool),
    "QLinearConcat": qlinear_concat,
    "QLinearConv": qlinear_conv,
    "QLinearGlobalAveragePool": single(lambda x: x.mean((2, 3), keepdim=True)),
    "QLinearLeakyRelu": single(lambda x, *, alpha=0.01: torch.nn.functional.leaky_relu(x, alpha)),
    "QLinearMatMul": qlinear_matmul,
    "QLinearMul": pairwise(torch.mul),
    "QLinearSigmoid": single(torch.sigmoid),
    "QLinearSoftmax": single(lambda x, *, axis=-1: x.softmax(axis)),
    "QuantizeLinear": quantize,
}
