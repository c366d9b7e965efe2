"""A mixture of two networks under attack: an image counts only if it stands three ways.

1. All attacks of the version, by the gradient of the mixture's surrogate (backbones/mixture.py).
2. Its APGD again by the mixture's own gradient, which the accurate network's answer and GELU mask.
3. Its APGD on the robust network alone, each of whose points is shown to the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from autolora.attacks.engine.network import Network, fooled, lengths
from autolora.attacks.engine.slots import Attack, State
from autolora.attacks.versions import Plan, Step
from autolora.backbones.mixture import Mixture
from autolora.common.errors import BadArgument
from autolora.threat import Threat

if TYPE_CHECKING:
    from autolora.backbones.classifier import Classifier

DEVIATION = "a mixture: by a surrogate's gradient, then APGD by its own and from its robust network"
ROUNDING = 1e-5
Model = Callable[[Tensor], Tensor]


def is_mixture(model: Any) -> bool:
    return isinstance(getattr(model, "body", None), Mixture)


def with_a_gradient(model: Any) -> Any:
    """A mixture with its surrogate's gradient, any other network as it is."""
    if not is_mixture(model):
        return model
    from autolora.backbones.classifier import with_view  # timm comes with it: only where a mixture has brought it

    return with_view(model, "surrogate")


def three_ways(model: Classifier, plan: Plan, precision: str) -> Plan:
    """The plan with the second and the third way behind it."""
    if precision != "float32":
        raise BadArgument("precision", precision, "a mixture is attacked in float32: copies know no surrogate")

    def all_of_it(classes: int) -> tuple[list[Step], str | None]:
        steps, deviation = plan(classes)
        gradient = [step for step in steps if step.name.startswith("apgd")]
        return [*steps, *two_ways(model, gradient)], "; ".join(filter(None, [deviation, DEVIATION]))

    return all_of_it


def two_ways(model: Classifier, steps: list[Step]) -> list[Step]:
    """The second and the third way of each step."""
    from autolora.backbones.classifier import robust_part, with_view

    own, robust = with_view(model, "own"), robust_part(model)
    again = [replace(step, name=f"own-{step.name}", attack=elsewhere(step, own), half=False) for step in steps]
    moved = [
        replace(step, name=f"transfer-{step.name}", attack=transferred(step, robust), half=False) for step in steps
    ]
    return [*again, *moved]


def elsewhere(step: Step, model: Model) -> Callable[[Network, Threat], Attack]:
    """A step's attack on a network of our own."""
    return lambda network, threat: step.attack(network.beside(model), threat)


def transferred(step: Step, model: Model) -> Callable[[Network, Threat], Attack]:
    return lambda network, threat: Shown(elsewhere(step, model)(network, threat), network, threat)


class Shown:
    """An attack on one network; what counts is whether its points fool another."""

    def __init__(self, attack: Attack, network: Network, threat: Threat) -> None:
        self.attack, self.network, self.threat = attack, network, threat
        self.rounds, self.gradients, self.forwards = attack.rounds, attack.gradients, attack.forwards + 1

    def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
        return self.attack.start(x, y, target, keys, attempts)

    def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
        _, points = self.attack.step(s, age)
        near = lengths(points - s["x"], self.threat.norm) <= self.threat.eps * (
            1 + ROUNDING
        )  # APGD for L1 begins far out
        return fooled(self.network.logits(points), s["y"], points) & near, points
