"""Small networks on which the right answer is known, or at least cheap."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """z = W x + b: the exact distance to each boundary can be computed by hand."""

    def __init__(self, classes: int = 5, shape: tuple[int, ...] = (3, 6, 6), seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        size = int(np.prod(shape))
        self.weight = nn.Parameter(torch.randn(classes, size, generator=draw) * scale)
        self.bias = nn.Parameter(-self.weight.detach().sum(1) / 2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


def smooth(classes: int = 5, seed: int = 0, side: int = 6) -> nn.Module:
    """A small convolutional network without kinks, so that two implementations follow the same path."""
    draw = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(6 * side * side, classes))
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=draw) * (1.5 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.1)
    return net.eval().requires_grad_(False)


def images(n: int = 12, side: int = 6, seed: int = 1) -> Tensor:
    return (torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 255).round() / 255


def stands(net: Linear, x: Tensor, y: Tensor, norm: str, eps: float) -> Tensor:
    """Exactly: no point of ball and box makes another class win. Coordinate by coordinate, in float64."""
    w, b = net.weight.detach().double(), net.bias.detach().double()
    out = []
    for image, label in zip(x.double().flatten(1), y.tolist()):
        margins = []
        for other in (k for k in range(len(w)) if k != label):
            v = w[label] - w[other]
            margins.append(float(v @ image + b[label] - b[other]) - most_harm(v.numpy(), image.numpy(), norm, eps))
        out.append(min(margins) > 0)
    return torch.tensor(out)


def most_harm(v: np.ndarray, x: np.ndarray, norm: str, eps: float) -> float:
    """max <-v, d> over the ball and the box."""
    room = np.where(v > 0, x, 1 - x)
    if norm == "linf":
        return float(np.abs(v) @ np.minimum(eps, room))
    if norm == "l1":
        order, left, harm = np.argsort(-np.abs(v)), eps, 0.0
        for i in order:
            step = min(left, room[i])
            harm, left = harm + step * abs(v[i]), left - step
        return float(harm)
    low, high = 0.0, 1e9  # d_i = min(t |v_i|, room_i) with |d| = eps, or all the room
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(np.minimum(middle * np.abs(v), room)) < eps else (low, middle)
    return float(np.abs(v) @ np.minimum(low * np.abs(v), room))
