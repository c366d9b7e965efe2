"""One line at the start of a long stage: how long it will take in all, measured on this network and this machine.

AutoAttack's code is imported only where it is asked about: progress of a training does not depend on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from autolora.backbones.classifier import Classifier
from autolora.backbones.layers import weight_layers
from autolora.common.progress import duration
from autolora.threat import Threat
from autolora.training.subtuning import blocks_of
from stages.common.params import Export, Finetune
from stages.estimate import costs
from stages.estimate.clock import price_of, threads, training
from stages.estimate.costs import Counts, Price

WORTH_SAYING = 10.0  # seconds
ATTACKED_AT_ONCE = 64  # images of an attack's batch


def say(stage: str, seconds: float, of_what: str) -> None:
    if seconds >= WORTH_SAYING:
        most = f"at most about {duration(seconds)} in all, where nothing else runs"
        print(f"{stage}: {most}: {of_what}", file=sys.stderr, flush=True)


def cost(model: Classifier, batch: int, seconds: Callable[[Price], float]) -> Price:
    """What a pass costs here: looked at briefly where that shows at once that nobody needs to be told."""
    return price_of(model, batch, worth=lambda at_most: seconds(at_most) >= WORTH_SAYING)


def finetune(model: Classifier, counts: Counts, section: Finetune, threat: Threat) -> None:
    blocks, asked = len(blocks_of(model)) if section.trains == "blocks" else 0, costs.at_most(section)

    def seconds(price: Price) -> list[float]:
        return [part / training() for part in costs.finetune(price, counts, asked, blocks, threat.eps, threat.norm)]

    robust, twin = seconds(cost(model, min(section.batch_size, counts.train), lambda price: sum(seconds(price))))
    epochs = f"{section.epochs} epochs of {counts.train:,} images"
    say("finetune", robust + twin, f"{epochs}, {duration(twin)} of it for the naturally tuned twin")


def merge(model: Classifier, counts: Counts, points: int, *, mixed: bool = False) -> None:
    def seconds(price: Price) -> float:
        return (costs.dial(price, counts, points) + mixed * costs.mixture(price, counts)) / threads()

    of_what = f"{points} points of the dial, {counts.val:,} validation images each"
    say("merge", seconds(cost(model, counts.val, seconds)), of_what)


def critical(model: Classifier, train: int) -> None:
    layers, batch = len(weight_layers(model)), min(costs.TUNING_BATCH, train)

    def seconds(price: Price) -> float:
        return costs.critical(price, Counts(train, 0), layers) / threads()

    of_what = f"how critical each of {layers} layers is, and one of them tuned naturally, before the dial"
    say("merge", seconds(cost(model, batch, seconds)), of_what)


def export(model: Classifier, images: int, section: Export) -> None:
    from stages.estimate import attack_costs

    def seconds(price: Price) -> float:
        return attack_costs.export(price, images, section) / threads()

    n = min(images, section.check_images)
    of_what = f"{1 + len(section.variants)} file(s), each attacked on {n} images"
    say("export", seconds(cost(model, min(ATTACKED_AT_ONCE, images), seconds)), of_what)
