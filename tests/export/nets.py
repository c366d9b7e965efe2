"""Small networks for the tests of merge and export: every kind of layer, and modules that have no ONNX form."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from autolora.backbones.classifier import Classifier, Spec, build


class Tiny(nn.Module):
    """Convolution, batch norm, a skip, pooling and a linear head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.fc((x + self.block(x)).mean((2, 3)))


class EveryLayer(nn.Module):
    """One of each kind of layer that can carry a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "plain": nn.Conv2d(3, 8, 3, padding=1),
                "strided": nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
                "grouped": nn.Conv2d(8, 12, 3, padding=1, groups=2),
                "depthwise": nn.Conv2d(12, 12, 5, padding=2, groups=12),
                "pointwise": nn.Conv2d(12, 6, 1),
                "oblong": nn.Conv2d(6, 6, (3, 1), padding=(1, 0)),
                "dilated": nn.Conv2d(6, 6, 3, padding=2, dilation=2),
                "linear": nn.Linear(6, 7),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.layers.items():
            x = layer(x.mean((2, 3)) if name == "linear" else torch.relu(x))
        return x


class Inverted(nn.Module):
    """An inverted residual, as in MobileNet: what int8 is known to break."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.Hardswish()
        )
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.depthwise(self.stem(x)).mean((2, 3)))


class Undecided(nn.Module):
    """Which way it goes depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


class Bessel(nn.Module):
    """An operator that ONNX does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x).mean((2, 3))


class Fickle(nn.Module):
    """Draws a number at every call, which the exporter takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * random.random()


class TwoImages(nn.Module):
    """Knows how many images there are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 64).mean(2)


def tiny(seed: int = 0, size: int = 8, name: str = "Tiny") -> Classifier:
    """A classifier with batch-norm statistics that are not those of a fresh network."""
    model = build(Spec(f"tests.export.nets:{name}", 10, size), seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()
