"""Projected gradient descent (Madry et al., 2018): the attack inside training and validation.

    x_{t+1} = P_ball( x_t + step * direction(grad_x CE(h(x_t), y)) )

The published number is AutoAttack's; PGD only trains and selects.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.threat import Threat


def pgd(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,  # [n,3,h,w] in [0,1]
    y: Tensor,  # [n]
    threat: Threat,
    steps: int = 10,
    *,
    step: float | None = None,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,  # the random start's, where it was drawn before
) -> Tensor:
    """The last point of `steps` ascent steps on the cross-entropy; `step` defaults to eps/4 (2/255 at 8/255)."""
    step = threat.eps / 4 if step is None else step
    if noise is None and random_start:
        noise = random_in_ball(x, threat, generator)
    perturbed = x.clone() if noise is None else project(x + noise, x, threat)
    for _ in range(steps):
        perturbed = perturbed.detach().requires_grad_(True)
        with torch.enable_grad():
            z = logits(perturbed)
            loss = F.cross_entropy(z.to(torch.promote_types(z.dtype, torch.float32)), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbed)
        perturbed = project(perturbed.detach() + step * ascent_direction(gradient, threat), x, threat)
    return perturbed.detach()


def random_in_ball(x: Tensor, threat: Threat, generator: torch.Generator | None) -> Tensor:
    if threat.norm == "linf":
        return (torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) * 2 - 1) * threat.eps
    direction = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    radius = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype).view(-1, 1, 1, 1)
    return direction / _l2(direction) * radius * threat.eps


def ascent_direction(gradient: Tensor, threat: Threat) -> Tensor:
    if threat.norm == "linf":
        return gradient.sign()
    largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
    scaled = gradient / largest.view(-1, 1, 1, 1)  # a confident network's are so small that squares vanish
    return scaled / _l2(scaled)


def project(perturbed: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Back into the ball around x and the box of pixel values."""
    offset = perturbed - x
    if threat.norm == "linf":
        offset.clamp_(-threat.eps, threat.eps)
    elif threat.norm == "l2":
        offset.mul_((threat.eps / _l2(offset)).clamp(max=1))
    else:
        raise NotImplementedError(f"PGD knows linf and l2, not {threat.norm}: evaluate {threat.norm} with AutoAttack")
    return offset.add_(x).clamp_(0, 1)


def _l2(t: Tensor) -> Tensor:
    return t.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
