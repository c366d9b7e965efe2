"""What AutoAttack costs, from its own budgets: an image that stands meets every attack to its end."""

from __future__ import annotations

from torch import nn

from autolora.attacks.also_flags import WORD
from autolora.attacks.engine.network import Network
from autolora.attacks.eps_curve import SHARES, STEPS
from autolora.attacks.versions import STANDARD, Step, plan_of, work
from autolora.threat import Threat
from stages.common.params import Evaluate, Export
from stages.estimate.costs import Price

CURVE = (len(SHARES) + 1) * (STEPS + 1)  # gradients of one image: its radii, and one that nothing survives
CORRUPTED = 75  # of each image; what it takes to make them comes on top
FALLEN = 0.1  # of the naturally tuned twin's images stand longer than the first attack: an assumption


def one_attack(price: Price, step: Step) -> float:
    """On one image that stands: the same passes, whatever the network and the radius."""
    passes = work(step, Network(nn.Identity(), 1), Threat("linf", 1.0))
    return price.of(gradients=passes.gradients, forwards=passes.forwards)


def autoattack(price: Price, images: int, plan: list[Step], standing: float) -> float:
    """All images meet the first attack; those that stand meet the others."""
    first, *others = [one_attack(price, step) for step in plan]
    return images * (first + standing * sum(others))


def evaluate(price: Price, images: int, classes: int, norm: str, section: Evaluate, *, mixed: bool = False) -> float:
    """The network that ships, its twin, and both curves over eps."""
    twice = 2 if mixed else 1  # networks in the one that ships
    one = sum(each.gradient for each in (of_a_pair(price), *again(price))) if mixed else price.gradient
    curves = CURVE * images * (one + price.gradient)
    corrupted = (twice + 1) * CORRUPTED * images * price.forward if WORD in section.also else 0.0
    plans = [plan_of(section.version, each, classes)[0] for each in (norm, *(t.norm for t in section.also_threats))]
    return curves + corrupted + sum(both(price, images, plan, mixed=mixed) for plan in plans)


def both(price: Price, images: int, plan: list[Step], *, mixed: bool = False) -> float:
    """Two networks under one threat."""
    ships = mixture(price, images, plan) if mixed else autoattack(price, images, plan, 1.0)
    return ships + autoattack(price, images, plan, FALLEN)


def mixture(price: Price, images: int, plan: list[Step]) -> float:
    """Two networks by a surrogate's gradient, APGD again by their own, and from one of them with a look at both."""
    more = sum(one_attack(one, step) for step in plan if step.name.startswith("apgd") for one in again(price))
    return autoattack(of_a_pair(price), images, plan, 1.0) + images * more


def again(price: Price) -> tuple[Price, Price]:
    """The second way and the third."""
    pair = of_a_pair(price)
    return pair, Price(price.forward, price.gradient + pair.forward, price.step)


def of_a_pair(price: Price) -> Price:
    return Price(2 * price.forward, 2 * price.gradient, 2 * price.step)


def attacked(section: Evaluate, test: int) -> int:
    return test if section.images == "all" else min(test, section.images)


def export(price: Price, images: int, section: Export) -> float:
    """Square on the file through onnxruntime; on a variant APGD as well."""
    n = min(images, section.check_images)
    square, apgd = STANDARD.queries * price.forward, (1 + STANDARD.targets) * (STANDARD.steps + 1) * price.gradient
    return n * (square + len(section.variants) * (square + apgd))
