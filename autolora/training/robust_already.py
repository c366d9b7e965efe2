"""Is a backbone robust already, under the threat that it is to be trained against?

    moved = E |f(x + d) - f(x)|^2  /  E |f(x) - f(x')|^2

f is what the head is given, d the worst that ten steps of ascent find in the ball, x' another image. At 1 an attacker
makes of an image's features those of any other one, and no head can be robust on them. No labels take part, and no
head, so it can be asked before training (docs/log/59).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from autolora.attacks.pgd import ascent_direction, project, random_in_ball
from autolora.backbones.features import features, features_seen
from autolora.backbones.frozen import frozen
from autolora.common import distributed
from autolora.data.batches import centre, take, to_pixels
from autolora.threat import Threat
from autolora.training.axes import NO_ATTACK
from autolora.training.first_rate import some_of
from autolora.training.settings import Settings, Split

IMAGES = 64  # evenly from the training part; robust networks and others differ a hundredfold
STEPS = 10
MOST = 0.5  # robust ones have 0.005 to 0.11 at the eps that they were trained at, a natural one has 1.7 to 3.4


def with_schedule(
    settings: Settings, model: nn.Module, train: Split, side: int, device: torch.device
) -> tuple[Settings, float | None]:
    """`eps_schedule: auto` is a ramp for a backbone that is not robust; and how far its features moved, where that was
    asked. The published rules judge progress from the first epoch on: no ramp goes with them."""
    if settings.eps_schedule != "auto":
        return settings, None
    if settings.method in NO_ATTACK or settings.reference in ("paper", "released"):
        return replace(settings, eps_schedule="constant"), None
    some = take(train[0], some_of(len(train[1]), IMAGES), device)
    network = copy.deepcopy(model).to(device)
    x = to_pixels(centre(some, side)).to(next(network.parameters()).dtype)
    moved = distributed.of_the_first(features_moved(network, x, settings.threat, settings.seed))
    return replace(settings, eps_schedule="ramp" if moved > MOST else "constant"), moved


def in_words(moved: float) -> str:
    found = f"an attacker moves its features by {moved:g} of the squared distance between two images"
    if moved > MOST:
        return f"The backbone is not robust yet: {found}, so eps grows from 0."
    return f"The backbone is robust already: {found}, so eps is the whole one throughout."


def features_moved(model: nn.Module, x: Tensor, threat: Threat, seed: int = 0) -> float:
    """x: [n,3,h,w] in [0,1]. Three digits, so that the order in which a sum was added decides nothing."""
    draw = torch.Generator(x.device).manual_seed(seed)
    with frozen(model), features_seen(model) as seen:

        def f(images: Tensor) -> Tensor:
            return features(model, seen, images).flatten(1).float()

        with torch.no_grad():
            before = f(x)
        apart = 2 * (before - before.mean(0)).square().sum(1).mean()  # of two images drawn at random
        worst = project(x + random_in_ball(x, threat, draw), x, threat)
        for _ in range(STEPS):
            worst = worst.detach().requires_grad_(True)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad((f(worst) - before).square().sum(), worst)
            worst = project(worst.detach() + threat.eps / 4 * ascent_direction(gradient, threat), x, threat)
        with torch.no_grad():
            way = (f(worst) - before).square().sum(1).mean()
    return float(f"{float(way / apart.clamp_min(1e-12)):.3g}")
