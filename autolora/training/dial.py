"""The dial: one number between the robust network and an accurate one, moved without training again.

    toward the branch     theta(alpha) = theta1 + alpha * BA
    toward the natural    theta(alpha) = theta1 + alpha * (theta_nat - theta1)

Both are folded into plain dense weights, so every alpha costs the same to run. The branch shares batch norm and head
with the robust network; the way to the naturally tuned twin interpolates everything: weights, biases, the affine
parameters of batch norm, its running means and variances, and the head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autolora.attacks.pgd import pgd
from autolora.backbones.frozen import frozen
from autolora.common.statistics import holm, mcnemar
from autolora.data.batches import to_pixels
from autolora.threat import Threat

STEPS = 20  # of the PGD that judges a point of the curve
SIGNIFICANT = 0.05  # p of a paired test, corrected for the number of alphas tried
MAY_LOSE = 0.005  # robust accuracy that a significant gain in clean accuracy may cost


@dataclass(frozen=True)
class Point:
    """One setting of the dial, with what it got right on the validation part."""

    toward: str  # branch | natural
    alpha: float
    clean: np.ndarray  # bool [n]
    robust: np.ndarray  # bool [n]: right on the image and on its PGD-20 neighbour

    @property
    def accuracies(self) -> tuple[float, float]:
        return float(self.clean.mean()), float(self.robust.mean())

    @property
    def counts(self) -> np.ndarray:
        """How often each image was answered rightly: 0, 1 (clean only) or 2."""
        return self.clean.astype(np.int8) + self.robust


@torch.no_grad()
def interpolate(robust: nn.Module, natural: nn.Module, alpha: float) -> nn.Module:
    """A copy with (1 - alpha) * theta1 + alpha * theta_nat in every weight and running statistic; counters stay."""
    mixed = copy.deepcopy(robust).eval()
    ours, theirs = robust.state_dict(), natural.state_dict()
    for name, value in mixed.state_dict().items():
        if theirs[name].shape != value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)} here and {tuple(theirs[name].shape)} in the natural twin")
        if value.is_floating_point() and alpha != 0:
            value.copy_(torch.lerp(ours[name], theirs[name].to(value), alpha))  # of shared weights: once, by two names
    return mixed.requires_grad_(False)


def judge(
    model: nn.Module,
    images: Tensor,  # uint8 [n,3,h,w]
    labels: Tensor,
    threat: Threat,
    batch: int = 256,
    on_batch: Callable[[int], object] = lambda n: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which images are right, and which of these stay right under PGD-20 (no random start: the same at every run)."""
    clean, robust = [], []
    with frozen(model):
        for pixels, y in zip(images.split(batch), labels.split(batch)):
            x = to_pixels(pixels)
            attacked = pgd(model, x, y, threat, STEPS, random_start=False)
            with torch.no_grad():
                right = model(x).argmax(1) == y
                clean.append(right)
                robust.append(right & (model(attacked).argmax(1) == y))
            on_batch(len(y))
    return torch.cat(clean).cpu().numpy(), torch.cat(robust).cpu().numpy()


def choose(points: Sequence[Point]) -> tuple[Point, str]:
    """The point to ship, and why; `points` lie in one direction. Alpha = 0 stays unless another point earns it.

    It does when clean accuracy rises significantly at no more than 0.5 points of robust accuracy, or when both rise,
    significantly together: by chance alone one of four alphas has both a little higher more often than not. Both tests
    are paired and exact (McNemar), and corrected for the number of alphas tried (Holm).
    """
    (start,) = (point for point in points if point.alpha == 0)
    others = [point for point in points if point is not start]
    on_clean = holm([_p(start.clean, point.clean) for point in others])
    on_both = holm([_p(start.counts, point.counts) for point in others])
    tested = zip(others, on_clean, on_both)
    earned = [(point, reason) for point, clean, both in tested if (reason := _earns(start, point, clean, both))]
    if not earned:
        return (
            start,
            "no other alpha gains clean accuracy significantly at 0.5 points of robust accuracy, or significantly both",
        )
    return max(earned, key=lambda pair: (*pair[0].accuracies, -pair[0].alpha))


def _p(before: np.ndarray, after: np.ndarray) -> float:
    return mcnemar(int((after > before).sum()), int((after < before).sum()))


def _earns(start: Point, point: Point, p_clean: float, p_both: float) -> str:
    """Why this point may replace alpha = 0; empty where it may not."""
    (clean, robust), (clean_now, robust_now) = start.accuracies, point.accuracies
    change = f"clean {clean:.4f} to {clean_now:.4f}, PGD-20 {robust:.4f} to {robust_now:.4f}"
    if clean_now > clean and robust_now > robust and p_both < SIGNIFICANT:
        return f"both rise: {change} (McNemar on both, corrected for the alphas tried: p = {p_both:.2g})"
    if clean_now > clean and p_clean < SIGNIFICANT and robust - robust_now <= MAY_LOSE + 1e-9:
        return f"{change} (McNemar on clean, corrected for the alphas tried: p = {p_clean:.2g})"
    return ""
