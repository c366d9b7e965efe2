"""Weather: snow, frost, fog, brightness. x: [n,3,h,w] in [0,1]."""

from __future__ import annotations

import torch
from torch import Tensor

from autolora.corruptions.draws import Draws
from autolora.corruptions.filters import moved, plasma, zoomed

GREY = (0.299, 0.587, 0.114)


def snow(x: Tensor, c: tuple[float, ...], draws: Draws) -> Tensor:
    """Flakes are large grains of noise above a threshold, blurred along their fall; the image becomes paler."""
    mean, spread, grain, least, length, blur, keep = c
    flakes = zoomed(mean + spread * draws.normal(1, *x.shape[2:]), grain)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    flakes = (moved(flakes, int(length), blur, draws.uniform(-135, -45)) * 255).round() / 255
    grey = (x * torch.tensor(GREY).to(x)[:, None, None]).sum(1, keepdim=True)
    pale = keep * x + (1 - keep) * x.maximum(grey * 1.5 + 0.5)
    return pale + flakes + flakes.flip(2, 3)


# Mean colour and contrast of the five photographs of frost in the original, which are not ours to ship.
ICE = torch.tensor(
    [
        [0.31, 0.58, 0.65, 0.06],
        [0.79, 0.80, 0.84, 0.07],
        [0.54, 0.60, 0.65, 0.12],
        [0.44, 0.48, 0.53, 0.13],
        [0.28, 0.37, 0.41, 0.15],
    ],
    dtype=torch.float64,
)


def frost(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    return c[0] * x + c[1] * ice(draws, x.shape[2], x.shape[3])


def ice(draws: Draws, height: int, width: int) -> Tensor:
    """Drawn crystals: ridges of a fractal, in one of five colours: [n,3,height,width]."""
    side = max(height, width)
    ridges = (1 - (2 * plasma(draws, side, 1.7) - 1).abs()) ** 4
    ridges = ridges[:, None, :height, :width] + 0.5 * plasma(draws, side, 1.4)[:, None, :height, :width]
    drawn = (ridges - ridges.mean((2, 3), keepdim=True)) / ridges.std((2, 3), keepdim=True).clamp_min(1e-9)
    tone = ICE[draws.whole(0, len(ICE))]
    return (tone[:, :3, None, None] + tone[:, 3, None, None, None] * drawn).clamp(0, 1)


def fog(x: Tensor, c: tuple[float, float], draws: Draws) -> Tensor:
    """A fractal on top, then as bright as before at most."""
    h, w = x.shape[2:]
    brightest = x.amax((1, 2, 3), keepdim=True)
    thick = x + c[0] * plasma(draws, max(h, w), c[1])[:, None, :h, :w]
    return thick * brightest / (brightest + c[0])


def brightness(x: Tensor, c: float, _draws: Draws) -> Tensor:
    """c more of the value in HSV: the largest colour grows by c, up to 1, and the others in proportion."""
    value = x.amax(1, keepdim=True)
    more = (value + c).clamp(max=1)
    return torch.where(value > 0, x * more / value.clamp_min(1e-9), more)
