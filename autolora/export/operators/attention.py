"""Attention as one operator (opset 23), as newer exporters write it."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from autolora.export.operators.shapes import NoRule


def attention(
    q: Tensor,  # [n,heads,queries,width], or [n,queries,heads*width]
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *past: Tensor | None,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    is_causal: int = 0,
    softcap: float = 0.0,
    **_: Any,
) -> Tensor:
    if any(each is not None for each in past):
        raise NoRule("Attention with what it has seen before")
    flat = q.dim() == 3
    if flat:
        q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    each = q.shape[1] // k.shape[1]  # query heads that share one head of keys
    k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    scores = q @ k.transpose(-1, -2) * (1 / sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores + _barred(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril())
    if mask is not None:
        scores = scores + (_barred(mask) if mask.dtype == torch.bool else mask)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    seen = scores.softmax(-1) @ v
    return seen.transpose(1, 2).flatten(2) if flat else seen


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def _barred(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, -torch.inf)


OPERATORS: dict[str, Callable[..., Tensor]] = {"Attention": attention}
