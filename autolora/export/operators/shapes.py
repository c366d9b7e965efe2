"""Operators that move, cut and join values, and those that speak of shapes.

What a node reads as a shape, axes or positions came as an attribute in older opsets, and comes as an input today: one
argument takes both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

Numbers = Tensor | Sequence[int] | int | None
INTEGERS: dict[int, torch.dtype] = {
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
}
NARROW: dict[int, torch.dtype] = {onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.BFLOAT16: torch.bfloat16}


class NoRule(ValueError):
    """An operator, or a form of one, that is not rebuilt in torch."""


def numbers(given: Numbers) -> list[int]:
    if given is None:
        return []
    if isinstance(given, Tensor):
        return [int(n) for n in given.reshape(-1).tolist()]
    return [given] if isinstance(given, int) else [int(n) for n in given]


def straight(x: Tensor, stepped: Tensor) -> Tensor:
    """`stepped` forwards, the identity backwards (Bengio et al., 2013)."""
    return x + (stepped - x).detach() if x.requires_grad else stepped


def cast(x: Tensor, *, to: int, **_: Any) -> Tensor:
    """Half precision is a rounding, and quantised integers are floats: both pass gradients on."""
    if to in NARROW:
        return straight(x.float(), x.to(NARROW[to]).float())
    if to == onnx.TensorProto.FLOAT:
        return x.float()
    if to == onnx.TensorProto.DOUBLE:
        return x.double()
    if to == onnx.TensorProto.BOOL:
        return x != 0
    if to not in INTEGERS:
        raise NoRule(f"Cast to {onnx.TensorProto.DataType.Name(to)}")
    return straight(x, x.trunc()) if x.requires_grad else x.to(INTEGERS[to])


def reshape(x: Tensor, shape: Numbers = None, *, allowzero: int = 0) -> Tensor:
    wanted = numbers(shape)
    return x.reshape([x.shape[i] if side == 0 and not allowzero else side for i, side in enumerate(wanted)])


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1)


def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(list(perm) if perm is not None else list(range(x.dim()))[::-1])


def squeeze(x: Tensor, axes: Numbers = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(numbers(axes)))


def unsqueeze(x: Tensor, axes: Numbers = None) -> Tensor:
    chosen = numbers(axes)
    for axis in sorted(axis % (x.dim() + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


def split(
    x: Tensor, split: Numbers = None, *, outputs: int, axis: int = 0, num_outputs: int | None = None
) -> tuple[Tensor, ...]:
    """In equal parts, the last one smaller where they do not come out even."""
    size = x.shape[axis]
    parts = numbers(split) or [-(-size // (num_outputs or outputs))] * outputs
    ends = [min(end, size) for end in accumulate(parts)]
    return x.split([end - start for start, end in zip([0, *ends], ends)], axis)


def slices(
    x: Tensor, starts: Numbers = None, ends: Numbers = None, axes: Numbers = None, steps: Numbers = None
) -> Tensor:
    first, last = numbers(starts), numbers(ends)
    chosen, strides = numbers(axes) or list(range(len(first))), numbers(steps) or [1] * len(first)
    for start, end, axis, step in zip(first, last, chosen, strides, strict=True):
        rows = range(x.shape[axis])[start:end:step]  # Python's slices are ONNX's
        if step < 0:
            x = x.index_select(axis, torch.tensor(list(rows), dtype=torch.int64, device=x.device))
        else:
            index: list[slice] = [slice(None)] * x.dim()
            index[axis] = slice(rows.start, rows.stop, rows.step)
            x = x[tuple(index)]
    return x


def _positions(index: Tensor, size: int, x: Tensor) -> Tensor:
    index = index.long().to(x.device)
    return torch.where(index < 0, index + size, index)


def gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis %= x.dim()
    taken = x.index_select(axis, _positions(index, x.shape[axis], x).reshape(-1))
    return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])


def gather_elements(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _positions(index, x.shape[axis], x))


def gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise NoRule("GatherND with batch_dims")
    return x[tuple(index.long().to(x.device).unbind(-1))]


def scatter_nd(x: Tensor, index: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    if reduction != "none":
        raise NoRule(f"ScatterND with reduction {reduction}")
    return x.index_put(tuple(index.long().to(x.device).unbind(-1)), updates)


def expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(numbers(shape))))


def pad(
    x: Tensor,
    pads: Numbers = None,
    value: Tensor | float | None = None,
    axes: Numbers = None,
    *,
    mode: str = "constant",
) -> Tensor:
    amounts, chosen = numbers(pads), numbers(axes) or list(range(x.dim()))
    sides = {axis % x.dim(): (amounts[i], amounts[i + len(chosen)]) for i, axis in enumerate(chosen)}
    if mode == "constant":
        flat = [side for axis in reversed(range(x.dim())) for side in sides.get(axis, (0, 0))]
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    for axis, (before, after) in sides.items():
        if before or after:
            x = x.index_select(axis, _mirrored(x.shape[axis], before, after, mode).to(x.device))
    return x


def _mirrored(size: int, before: int, after: int, mode: str) -> Tensor:
    at = torch.arange(-before, size + after)
    if mode == "edge":
        return at.clamp(0, size - 1)
    if mode == "wrap":
        return at % size
    if mode != "reflect":
        raise NoRule(f"Pad {mode}")
    around = at % max(2 * size - 2, 1)
    return torch.minimum(around, 2 * size - 2 - around)


def tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(numbers(repeats))


def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    return (torch.zeros(1) if value is None else value).reshape(-1)[0].expand(numbers(shape)).clone()


def arange(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def one_hot(index: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    off, on = values
    size = int(depth)
    hit = F.one_hot(_positions(index, size, index), size).bool()
    return torch.where(hit.movedim(-1, axis), on, off)


def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b, left = blocksize, c // blocksize**2
    if mode == "DCR":
        x = x.reshape(n, b, b, left, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, left, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, left, h * b, w * b)


def space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b * b, h // b, w // b)


def arg_extreme(*, largest: bool) -> Callable[..., Tensor]:
    def find(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        signed = x if largest else -x
        if not select_last_index:
            return signed.argmax(axis, keepdim=bool(keepdims))
        return x.shape[axis] - 1 - signed.flip(axis).argmax(axis, keepdim=bool(keepdims))

    return find


def top_k(x: Tensor, k: Tensor | int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    found = torch.topk(x, int(k), axis, bool(largest), bool(sorted))
    return found.values, found.indices


OPERATORS: dict[str, Callable[..., Any]] = {
    "ArgMax": arg_extreme(largest=True),
    "ArgMin": arg_extreme(largest=False),
    "Cast": cast,
    "CastLike": lambda x, like, **_: x.to(like.dtype),
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Dropout": lambda x, *_, **__: x,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Identity": lambda x: x,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": arange,
    "Reshape": reshape,
    "ScatterND": scatter_nd,
    "Shape": shape,
    "Size": lambda x: torch.tensor(x.numel()),
    "Slice": slices,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "TopK": top_k,
    "Transpose": transpose,
    "Trilu": lambda x, k=None, *, upper=1: (torch.triu if upper else torch.tril)(x, 0 if k is None else int(k)),
    "Unsqueeze": unsqueeze,
}
# What says how large or where something is: (operator) -> the inputs that must not depend on pixels.
SHAPES: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
