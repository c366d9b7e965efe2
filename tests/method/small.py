"""Small networks and images that take no time: colours and stripes, three classes."""

import numpy as np
import torch

from autolora.threat import Threat
from tests.oracle.steps import Small

THREAT = Threat("linf", "8/255")
QUICK = {"epochs": 3, "batch_size": 16, "precision": "float32", "augmentation": "crop_flip", "progress": False}
QUICK |= {"reference": "paper"}


def network(classes: int = 3) -> Small:
    torch.manual_seed(0)
    return Small(classes)


def images(n: int, seed: int = 0, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n,3,s,s]: class c is bright in channel c."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    pixels = draw.integers(0, 120, (n, 3, size, size))
    pixels[np.arange(n), labels] += 100
    return pixels.astype(np.uint8), labels
