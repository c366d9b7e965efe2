"""Operators on numbers: element by element, along an axis, and products of matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.export.operators.shapes import NoRule, Numbers, flatten, numbers, straight


def divided(a: Tensor, b: Tensor) -> Tensor:
    """Integers lose what is behind the point."""
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def clip(
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    """Bounds were attributes up to opset 6."""
    below, above = min if low is None else low, max if high is None else high
    return x if below is None and above is None else x.clamp(below, above)  # type: ignore[arg-type]


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1,
    beta: float = 1,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    left, right = a.T if transA else a, b.T if transB else b
    if alpha == beta == 1 and c is not None and c.dim() == 1:
        return torch.addmm(c, left, right)
    product = left @ right if alpha == 1 else alpha * (left @ right)
    return product if c is None else product + (c if beta == 1 else beta * c)


def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    if transBatchA or transBatchB:
        raise NoRule("FusedMatMul with a transposed batch")
    return alpha * ((a.transpose(-1, -2) if transA else a) @ (b.transpose(-1, -2) if transB else b))


def softmax_of_rows(act: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Up to opset 12: over all that lies from the axis on."""
    return lambda x, *, axis=1: act(flatten(x, axis=axis), 1).reshape(x.shape)


def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def reduced(act: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def along(x: Tensor, axes: Numbers = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        chosen = numbers(axes)
        if not chosen and noop_with_empty_axes:
            return x
        return act(x, chosen or list(range(x.dim())), keep=bool(keepdims))

    return along


def _product(x: Tensor, axes: list[int], *, keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _norm(order: int) -> Callable[..., Tensor]:
    return lambda x, axes, keep: torch.linalg.vector_norm(x, order, axes, keep)


def cumulative(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    along = int(axis)
    x = x.flip(along) if reverse else x
    total = x.cumsum(along)
    total = total - x if exclusive else total
    return total.flip(along) if reverse else total


def lp_normalised(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return x / torch.linalg.vector_norm(x, p, axis, keepdim=True)


def einsum(*terms: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *terms)


def _floor(x: Tensor) -> Tensor:
    return straight(x, x.floor()) if x.is_floating_point() else x


def _mean(*terms: Tensor) -> Tensor:
    return reduce(torch.add, terms) / len(terms)


def _bias_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias)


def _fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def _selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * F.elu(x, alpha)


def _bent(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def _many(act: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *terms: reduce(act, terms)


def _remainder(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    nothing = torch.zeros_like(x, dtype=torch.bool)
    return (x.isneginf() if detect_negative else nothing) | (x.isposinf() if detect_positive else nothing)


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceL1": _norm(1),
    "ReduceL2": _norm(2),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}
OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: reduced(act) for name, act in REDUCTIONS.items()},
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Atan": torch.atan,
    "BiasGelu": _bias_gelu,
    "Ceil": lambda x: straight(x, x.ceil()),
    "Celu": lambda x, *, alpha=1.0: F.celu(x, alpha),
    "Clip": clip,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "CumSum": cumulative,
    "Div": divided,
    "Einsum": einsum,
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "FastGelu": _fast_gelu,
    "Floor": _floor,
    "FusedMatMul": fused_matmul,
    "Gelu": lambda x, *, approximate="none": F.gelu(x, approximate=approximate),
    "Gemm": gemm,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": F.hardswish,
    "Hardmax": hardmax,
    "IsInf": _infinite,
    "IsNaN": torch.isnan,
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "LogSoftmax": lambda x, *, axis=-1: x.log_softmax(axis),
    "LpNormalization": lp_normalised,
    "MatMul": torch.matmul,
    "Max": _many(torch.maximum),
    "Mean": _mean,
    "Min": _many(torch.minimum),
    "Mish": F.mish,
    "Mod": _remainder,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": _bent,
    "Pow": torch.pow,
    "QuickGelu": lambda x, *, alpha=1.702: x * torch.sigmoid(alpha * x),
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": lambda x: straight(x, x.round()),
    "Selu": _selu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softmax": lambda x, *, axis=-1: x.softmax(axis),
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Sum": _many(torch.add),
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "ThresholdedRelu": lambda x, *, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)),
    "Where": lambda chosen, a, b: torch.where(chosen.bool(), a, b),
    "Xor": torch.logical_xor,
}
OLDER: dict[str, Callable[..., Any]] = {  # up to opset 12
    "Hardmax": softmax_of_rows(lambda x, axis: hardmax(x, axis=axis)),
    "LogSoftmax": softmax_of_rows(torch.log_softmax),
    "Softmax": softmax_of_rows(torch.softmax),
}
