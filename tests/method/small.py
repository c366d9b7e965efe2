"""Small networks and images that take no time: colours and stripes, three classes."""

import numpy as np
import timm
import torch
from torch import nn

from autolora.threat import Threat
from tests.oracle.steps import Small

THREAT = Threat("linf", "8/255")
QUICK = {"epochs": 3, "batch_size": 16, "precision": "float32", "augmentation": "crop_flip", "progress": False}
QUICK |= {"reference": "paper"}


def network(classes: int = 3) -> Small:
    torch.manual_seed(0)
    return Small(classes)


def wide_enough() -> Small:
    """For channels last: torch crashes on the narrow shortcut of `network` (autolora/training/speed.py)."""
    torch.manual_seed(0)
    return Small(stem=8)


def transformer(size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": size, "patch_size": size // 2, "embed_dim": 12, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **sizes)


def without_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*body), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


class Tied(nn.Module):
    """Two layers share a weight, and a third one is a parameter of the network itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.own, self.c, self.head = nn.Parameter(torch.randn(8, 8, 1, 1)), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.b.weight, self.c.weight = self.a.weight, self.own

    def forward(self, x):
        return self.head(self.c(self.b(self.a(self.stem(x)).relu()).relu()).mean((2, 3)))


def images(n: int, seed: int = 0, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n,3,s,s]: class c is bright in channel c."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = draw.integers(0, 120, (n, 3, size, size))
    pixels[np.arange(n), labels] += 100
    return pixels.astype(np.uint8), labels
