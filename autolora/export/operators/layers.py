"""Layers of networks: convolutions, pools, normalisations, and images made larger or smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.export.operators.shapes import NoRule, Numbers, numbers

CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
LARGEST: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Window(NamedTuple):
    """What slides over an image, and what is added around the image first."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def even(self) -> bool:
        return self.before == self.after


def window(
    x: Tensor,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Window:
    n = len(kernel)
    steps, spread, around = list(strides or [1] * n), list(dilations or [1] * n), list(pads or [0] * 2 * n)
    before, after = around[:n], around[n:]
    if auto_pad.startswith("SAME"):
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread)]
        total = [max((-(-side // s) - 1) * s + r - side, 0) for side, s, r in zip(x.shape[2:], steps, reach)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, after = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
    return Window(list(kernel), steps, spread, before, after)


def padded(x: Tensor, w: Window, value: float = 0.0) -> Tensor:
    """torch wants the last axis first, before and after together."""
    return F.pad(x, [side for pair in zip(reversed(w.before), reversed(w.after)) for side in pair], value=value)


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: int = 1, kernel_shape: Any = None, **around: Any
) -> Tensor:
    w = window(x, weight.shape[2:], **around)
    act, padding = CONVOLUTIONS[len(w.kernel)], w.before if w.even else 0
    return act(x if w.even else padded(x, w), weight, bias, w.strides, padding, w.dilations, group)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    group: int = 1,
    kernel_shape: Any = None,
    output_padding: Sequence[int] = (),
    output_shape: Sequence[int] = (),
    **around: Any,
) -> Tensor:
    w = window(x, weight.shape[2:], **around)
    if not w.even or output_shape or around.get("auto_pad", "NOTSET") != "NOTSET":
        raise NoRule("ConvTranspose with padding that differs from side to side")
    extra = list(output_padding) or [0] * len(w.kernel)
    return TRANSPOSED[len(w.kernel)](x, weight, bias, w.strides, w.before, extra, group, w.dilations)


def max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], ceil_mode: int = 0, storage_order: int = 0, **around: Any
) -> Tensor:
    w = window(x, kernel_shape, **around)
    direct = w.even and all(2 * p <= k for p, k in zip(w.before, w.kernel))  # torch takes no more
    x = x if direct else padded(x, w, -torch.inf)
    return LARGEST[len(w.kernel)](x, w.kernel, w.strides, w.before if direct else 0, w.dilations, bool(ceil_mode))


def average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], ceil_mode: int = 0, count_include_pad: int = 0, **around: Any
) -> Tensor:
    w = window(x, kernel_shape, **around)
    if any(d > 1 for d in w.dilations):
        raise NoRule("AveragePool with dilations")
    act, ceil = AVERAGES[len(w.kernel)], bool(ceil_mode)
    if w.even and all(2 * p <= k for p, k in zip(w.before, w.kernel)):
        return act(x, w.kernel, w.strides, w.before, ceil, bool(count_include_pad))
    mean = act(padded(x, w), w.kernel, w.strides, 0, ceil)
    return mean if count_include_pad else mean / act(padded(torch.ones_like(x), w), w.kernel, w.strides, 0, ceil)


def lp_pool(x: Tensor, *, kernel_shape: Sequence[int], p: int = 2, **rest: Any) -> Tensor:
    size = torch.Size(kernel_shape).numel()
    mean = average_pool(x.abs() ** p, kernel_shape=kernel_shape, count_include_pad=1, **rest)
    return (mean * size) ** (1 / p)


def _plane(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    training_mode: int = 0,
    **_: Any,
) -> Tensor:
    if training_mode:
        raise NoRule("BatchNormalization in training: export the network after model.eval()")
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    shape = x.shape[axis % x.dim() :]
    if scale.shape == shape:
        return F.layer_norm(x, shape, scale, bias, epsilon)
    normal = F.layer_norm(x, shape, eps=epsilon) * scale
    return normal if bias is None else normal + bias


def rms_norm(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Tensor:
    axes = list(range(axis % x.dim(), x.dim()))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


def group_norm(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, **_: Any) -> Tensor:
    """Up to opset 20 the scale is one for each group."""
    each = x.shape[1] // len(scale)
    return F.group_norm(x, num_groups, scale.repeat_interleave(each), bias.repeat_interleave(each), epsilon)


def local_response(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, bias)


# --- Resize -----------------------------------------------------------------------------------------------------------


def resize(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    axes: Numbers = None,
    mode: str = "nearest",
    **how: Any,
) -> Tensor:
    """Each axis by itself: what comes out is a sum of what went in, whose weights are a matrix [out,in]."""
    chosen = [axis % x.dim() for axis in numbers(axes)] or list(range(x.dim()))
    if how.pop("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoRule("Resize that keeps the aspect ratio")
    given = [] if scales is None or not scales.numel() else scales.tolist()
    for i, axis in enumerate(chosen):
        size = x.shape[axis]
        wanted = int(size * given[i]) if given else numbers(sizes)[i]
        scale = given[i] if given else wanted / size
        if wanted != size or scale != 1:
            weights = _weights(size, wanted, scale, mode, **how).to(x)
            x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x


def _weights(
    size: int,
    wanted: int,
    scale: float,
    mode: str,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    antialias: int = 0,
    extrapolation_value: float = 0.0,
) -> Tensor:
    at = _positions(torch.arange(wanted, dtype=torch.float64), size, wanted, scale, coordinate_transformation_mode)
    if mode == "nearest":
        return F.one_hot(_nearest(at, nearest_mode).long().clamp(0, size - 1), size).double()
    wider = max(1 / scale, 1.0) if antialias else 1.0  # what is made smaller is seen through a wider kernel
    reach = ceil(2 * wider)
    near = torch.arange(1 - reach, 1 + reach) + at.floor().long()[:, None]  # [out,4], where nothing is wider
    shares = _kernel((near - at[:, None]).abs() / wider, mode, cubic_coeff_a)
    if exclude_outside:
        shares = shares * ((near >= 0) & (near < size))
    shares = shares / shares.sum(1, keepdim=True)
    return torch.zeros(wanted, size, dtype=torch.float64).scatter_add_(1, near.clamp(0, size - 1), shares)


def _positions(out: Tensor, size: int, wanted: int, scale: float, mode: str) -> Tensor:
    """Where in the old image each place of the new one lies."""
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and wanted > 1):
        return (out + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return torch.zeros_like(out)
    if mode == "asymmetric":
        return out / scale
    if mode == "align_corners":
        return out * ((size - 1) / (wanted - 1)) if wanted > 1 else torch.zeros_like(out)
    raise NoRule(f"Resize {mode}")


def _nearest(at: Tensor, mode: str) -> Tensor:
    ways = {
        "round_prefer_floor": lambda: (at - 0.5).ceil(),
        "round_prefer_ceil": lambda: (at + 0.5).floor(),
        "floor": at.floor,
        "ceil": at.ceil,
    }
    return ways[mode]()


def _kernel(distance: Tensor, mode: str, a: float) -> Tensor:
    if mode == "linear":
        return (1 - distance).clamp_min(0)
    if mode != "cubic":
        raise NoRule(f"Resize {mode}")
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": lambda x: x.mean(_plane(x), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(_plane(x), keepdim=True),
    "GroupNormalization": group_norm,
    "InstanceNormalization": lambda x, scale, bias, *, epsilon=1e-5: F.instance_norm(
        x, weight=scale, bias=bias, eps=epsilon
    ),
    "LRN": local_response,
    "LayerNormalization": layer_norm,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "RMSNormalization": rms_norm,
    "Resize": resize,
    "SimplifiedLayerNormalization": rms_norm,
    "Upsample": lambda x, scales=None, *, mode="nearest": resize(
        x, None, torch.as_tensor(scales), mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
}
OLDER: dict[str, Callable[..., Any]] = {  # opset 10: no region of interest, no half pixels
    "Resize": lambda x, scales, *, mode="nearest": resize(
        x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    ),
}
SHAPES: dict[str, tuple[int, ...]] = {"Resize": (1, 2, 3), "Upsample": (1,)}
