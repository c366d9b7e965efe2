"""One line at the start of a long stage: how long it will take in all, measured on this network and this machine.

AutoAttack's code is imported only where it is asked about: progress of a training does not depend on it.
"""

from __future__ import annotations

import sys

from autolora.backbones.classifier import Classifier
from autolora.backbones.layers import weight_layers
from autolora.common.progress import duration
from stages.common.params import Export, Finetune
from stages.estimate import costs
from stages.estimate.clock import price_of, threads, training
from stages.estimate.costs import Counts

WORTH_SAYING = 10.0  # seconds
ATTACKED_AT_ONCE = 64  # images of an attack's batch


def say(stage: str, seconds: float, of_what: str) -> None:
    if seconds >= WORTH_SAYING:
        print(f"{stage}: at most about {duration(seconds)} in all: {of_what}", file=sys.stderr, flush=True)


def finetune(model: Classifier, counts: Counts, section: Finetune) -> None:
    price = price_of(model, min(section.batch_size, counts.train))
    robust, twin = (seconds / training() for seconds in costs.finetune(price, counts, section))
    epochs = f"{section.epochs} epochs of {counts.train:,} images"
    say("finetune", robust + twin, f"{epochs}, {duration(twin)} of it for the naturally tuned twin")


def merge(model: Classifier, counts: Counts, points: int) -> None:
    seconds = costs.dial(price_of(model, counts.val), counts, points) / threads()
    say("merge", seconds, f"{points} points of the dial, {counts.val:,} validation images each")


def critical(model: Classifier, train: int) -> None:
    layers, price = len(weight_layers(model)), price_of(model, min(costs.TUNING_BATCH, train))
    seconds = costs.critical(price, Counts(train, 0), layers) / threads()
    say("merge", seconds, f"how critical each of {layers} layers is, and one of them tuned naturally, before the dial")


def export(model: Classifier, images: int, section: Export) -> None:
    from stages.estimate import attack_costs as costs

    n = min(images, section.check_images)
    seconds = costs.export(price_of(model, min(ATTACKED_AT_ONCE, images)), images, section) / threads()
    say("export", seconds, f"{1 + len(section.variants)} file(s), each attacked on {n} images")
