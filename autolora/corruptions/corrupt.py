"""One corruption at one severity on a batch of images (Hendrycks & Dietterich, 2019).

    corrupted(x, ids, "fog", severity=3, seed=0)      x: uint8 [n,3,h,w]  ->  uint8 [n,3,h,w]

Up to 32 pixels the strengths are those of CIFAR-10-C, beyond those of ImageNet-C (`strengths_of` says which). An
image's draws are a function of (seed, corruption, severity, id): neither the batch nor the order matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from autolora.common.errors import BadArgument, Words
from autolora.corruptions import blur, digital, noise, weather
from autolora.corruptions.draws import Draws

CORRUPTIONS: dict[str, Callable[[Tensor, Any, Draws], Tensor]] = {
    "gaussian_noise": noise.gaussian,
    "shot_noise": noise.shot,
    "impulse_noise": noise.impulse,
    "defocus_blur": blur.defocus,
    "glass_blur": blur.glass,
    "motion_blur": blur.motion,
    "zoom_blur": blur.zoom,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg,
}
SEVERITIES = (1, 2, 3, 4, 5)
SMALL, SMALLEST = 32, 16  # pixels of the shorter side


def strengths_of(side: int) -> str:
    return "CIFAR-10-C" if side <= SMALL else "ImageNet-C"


def corrupted(x: Tensor, ids: Sequence[str], name: str, severity: int, seed: int = 0) -> Tensor:
    if name not in CORRUPTIONS:
        raise BadArgument("name", name, f"expected one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise BadArgument("severity", severity, "expected a whole number from 1 to 5")
    if x.dtype != torch.uint8 or x.dim() != 4 or x.shape[1] != 3:
        raise BadArgument("x", Words(f"{x.dtype} of shape {tuple(x.shape)}"), "expected uint8 images [n,3,h,w]")
    side = min(x.shape[2:])
    if side < SMALLEST:
        raise BadArgument("x", Words(f"of {side} pixels a side"), f"corruptions need at least {SMALLEST}")
    strength = STRENGTHS[strengths_of(side)][name][severity - 1]
    draws = Draws(seed, f"{name}/{severity}", ids)
    found = CORRUPTIONS[name](x.cpu().double() / 255, strength, draws)
    return (found.clamp(0, 1) * 255).to(torch.uint8).to(x.device)  # cut off, not rounded, as in the published sets


STRENGTHS: dict[str, dict[str, tuple]] = {
    "CIFAR-10-C": {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": (500, 250, 100, 75, 50),
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "elastic_transform": (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg_compression": (80, 65, 58, 50, 40),
    },
    "ImageNet-C": {
        "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": (60, 25, 12, 5, 3),
        "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        # there in pixels of 244 a side, where images are of 224; here in shares of the side
        "elastic_transform": tuple(
            tuple(part * 244 / 224 for part in c)
            for c in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
        "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": (25, 18, 15, 10, 7),
    },
}
