"""Training on one gradient an image in place of ten: the attack, what keeps the loss straight, and the guard.

    eta ~ U(-2 eps, 2 eps);   x~ = clip(x + eta + eps * sign grad CE(h(x + eta), y))      N-FGSM (de Jorge et al. 2022)

A network that is trained so may learn to fool the one step: it withstands that, and nothing else (catastrophic
overfitting). Validation stays PGD-10, the guard looks for the collapse, and what follows it is trained on PGD-10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.threat import Threat
from autolora.training.controllers import SURER, rise

NOISE = 2.0  # the radius of the first draw, in eps
STRAIGHT_UP_TO = 8 / 255  # above it ELLE-A's term is added to the loss
FEWEST = 8  # images that withstand one step and fall to ten, before anything is called a collapse


def single_step(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: Threat, noise: Tensor) -> Tensor:
    """`noise` reaches to 2 eps; what comes out is not projected back into the ball, only into the box of pixels."""
    point = (x + noise).clamp_(0, 1).requires_grad_(True)
    with torch.enable_grad():
        z = logits(point)
        loss = F.cross_entropy(z.to(torch.promote_types(z.dtype, torch.float32)), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, point)
    return (point.detach() + threat.eps * gradient.sign()).clamp_(0, 1)


def collapsed(kept: Sequence[float], right: Sequence[float], one: Sequence[float], ten: Sequence[float]) -> bool:
    """Is the state surely lost (validation hits now, against the kept state's)? Or do most of the training images that
    withstand one step (`one`) fall to ten (`ten`)?"""
    lost = bool(kept) and rise(kept, right) < -SURER
    return lost or (sum(one) - sum(ten) >= FEWEST and 2 * sum(ten) < sum(one))


# --- above 8/255 -----------------------------------------------------------------------------------------------------


@dataclass
class Straight:
    """ELLE-A (Abad Rocamora et al., 2024): a penalty for a loss that bends between two points of the ball.

    Its weight is 0 until the bend is an outlier among all that were seen, then 4000, and from there 1 % less a step.
    """

    weight: float = 0.0
    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def observe(self, bend: float) -> None:
        """After a step: `bend` is the mean over its batch."""
        mean = self.total / self.count if self.count else 0.0
        spread = sqrt(max(0.0, self.squares / self.count - mean * mean)) if self.count else 0.0
        outlier = self.count > 2 and bend > mean + 2 * spread
        self.weight = 4000.0 if outlier else 0.99 * self.weight
        self.count, self.total, self.squares = self.count + 1, self.total + bend, self.squares + bend * bend


def bends(losses: Callable[[Tensor], Tensor], x: Tensor, draws: Tensor, share: Tensor, eps: float) -> Tensor:
    """(l(x_c) - (1 - a) l(x_a) - a l(x_b))^2 of each image, x_c = (1 - a) x_a + a x_b.

    `draws` [2,n,3,h,w] lie in (-1, 1), `share` [n] in (0, 1); `losses` gives the loss of each image.
    """
    first, second = x + eps * draws[0], x + eps * draws[1]
    a = share.view(-1, 1, 1, 1)
    at_first, at_second, between = losses(torch.cat([first, second, (1 - a) * first + a * second])).chunk(3)
    return (between - (1 - share) * at_first - share * at_second).square()
