"""MixedNUTS (Bai et al., 2024): a robust and an accurate network as one, mixed in their answers.

    f = log((1 - a) * onehot(argmax g) + a * softmax(M(h)))       g accurate, h robust
    M(h) = s * |u|^p * sign u,   u = GELU(LN(h) + c)              LN over the largest 250 logits

Where the margin of softmax(M(h)) is at least (1 - a) / a, no answer of g changes f's. So the accurate network decides
where the robust one is unsure, and nowhere else.

The answer of g has no gradient, and GELU takes most of h's. An attack needs another one, that of

    f_d = log((1 - b) * softmax(g) + 0.9 b * softmax(h) + 0.1 b * softmax(M(h)))

so a mixture is attacked as `with_view(mixture, "surrogate")`: the value of f to the bit, the gradient of f_d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 250  # logits that the layer norm looks at
TINY = 1e-8
View = Literal["own", "surrogate"]


@dataclass(frozen=True)
class LogitMap:
    """M, and how much of the robust network is in the mixture."""

    scale: float  # s
    power: float = 1.0  # p
    shift: float | None = None  # c; None: no GELU
    alpha: float = 0.5  # a
    surrogate_alpha: float = 0.5  # b

    def __call__(self, h: Tensor) -> Tensor:
        """M(h): [n,classes]"""
        u = normed(h)
        if self.shift is not None:
            u = F.gelu(u + self.shift)
        return self.scale * u.abs().pow(self.power) * u.sign()


def normed(h: Tensor) -> Tensor:
    """Mean and (unbiased) variance of the largest logits, taken from all."""
    top = h.topk(min(LARGEST, h.shape[1]), dim=1).values
    return (h - top.mean(1, keepdim=True)) / (top.var(1, keepdim=True) + TINY).sqrt()


class Mixture(nn.Module):
    """normalised pixels -> log probabilities, from two bodies of one kind."""

    def __init__(self, robust: nn.Module, accurate: nn.Module, mapping: LogitMap, view: View = "own") -> None:
        super().__init__()
        self.robust, self.accurate, self.mapping, self.view = robust, accurate, mapping, view

    def forward(self, x: Tensor) -> Tensor:
        h, g = self.robust(x), self.accurate(x)
        f = mixed(h, g, self.mapping)
        return f if self.view == "own" else ValueOfOne.apply(f, surrogate(h, g, self.mapping))

    def with_view(self, view: View) -> Mixture:
        """The same two bodies."""
        other = Mixture(self.robust, self.accurate, self.mapping, view)
        other.training = self.training
        return other


def mixed(h: Tensor, g: Tensor, mapping: LogitMap) -> Tensor:
    """f, finite also where the robust network is sure."""
    log_p, a = mapping(h).log_softmax(1), mapping.alpha
    chosen = torch.arange(g.shape[1], device=g.device) == g.argmax(1, keepdim=True)
    return torch.where(chosen, ((1 - a) + a * log_p.exp()).log(), math.log(a) + log_p)


def surrogate(h: Tensor, g: Tensor, mapping: LogitMap) -> Tensor:
    """f_d"""
    b = mapping.surrogate_alpha
    shares = ((1 - b, g), (0.9 * b, h), (0.1 * b, mapping(h)))
    return torch.stack([z.log_softmax(1) + math.log(share) for share, z in shares]).logsumexp(0)


class ValueOfOne(torch.autograd.Function):
    """The value of the first, the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, direction: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]
