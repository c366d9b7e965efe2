"""What a network in training is worth: which images it classifies well, as they are and under attack."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from autolora.attacks.pgd import pgd
from autolora.backbones.frozen import evaluating, frozen
from autolora.common import distributed
from autolora.data.batches import take
from autolora.training.attack import STEPS, View
from autolora.training.branch import natural_weights
from autolora.training.first_rate import some_of
from autolora.training.learner import Learner
from autolora.training.settings import StoredImages
from autolora.training.single_step import single_step


@torch.no_grad()
def natural_hits(learner: Learner) -> Tensor:
    """Which training images the natural branch classifies well, as they are, in eval."""
    assert learner.branch is not None
    weights = natural_weights(learner.model, learner.branch, learner.head)
    with evaluating(learner.model):
        return hits(learner, lambda x: functional_call(learner.model, weights, (x,)), learner.images, learner.labels)


def clean_hits(learner: Learner) -> Tensor:
    """Which validation images are classified well; branch off."""
    with frozen(learner.shipped()) as model:
        return hits(learner, model, learner.val_images, learner.val_labels)


def training_hits(learner: Learner) -> Tensor:
    """Which of some training images are, as they are; branch off."""
    index = some_of(len(learner.labels))
    images, labels = take(learner.images, index, learner.device), learner.labels[index.to(learner.device)]
    with frozen(learner.shipped()) as model:
        return hits(learner, model, images, labels)


def robust_hits(learner: Learner) -> Tensor:
    """The same after PGD-10 without random start: attacked in the form that training attacks, judged in full."""
    with frozen(learner.shipped()) as model:
        return hits(learner, model, learner.val_images, learner.val_labels, attack_view(learner))


def hits(learner: Learner, view: View, images: StoredImages, labels: Tensor, attacked: View | None = None) -> Tensor:
    """bool [n], the same in every process; of images as they are, or as an attack on the `attacked` leaves them."""
    right = torch.zeros(len(labels), device=learner.device)
    size = learner.settings.batch_size  # what fits in training fits here
    for index in distributed.mine(torch.arange(len(labels))).split(size):
        x, at = learner.pixels(take(images, index, learner.device)), index.to(learner.device)
        if attacked is not None:
            x = pgd(attacked, x, labels[at], learner.settings.threat, STEPS, random_start=False)
        with torch.no_grad():
            right[at] = (view(x).argmax(1) == labels[at]).float()
    distributed.add([right])
    return right.bool().cpu()


def withstood(learner: Learner, count: int) -> tuple[list[float], list[float]]:
    """Which of some training images withstand one step from where they are, and which PGD-10, of this eps."""
    index = some_of(len(learner.labels), count)  # of all classes, where images come class by class
    x, y = learner.pixels(take(learner.images, index, learner.device)), learner.labels[index.to(learner.device)]
    view, threat = attack_view(learner), learner.attacker.reached()
    one = single_step(view, x, y, threat, torch.zeros_like(x))
    ten = pgd(view, x, y, threat, STEPS, random_start=False)
    with torch.no_grad():
        once, often = ((view(attacked).argmax(1) == y).tolist() for attacked in (one, ten))
    return distributed.of_the_first((once, often))


def attack_view(learner: Learner) -> View:
    """What would ship now, folded and in the attack's precision."""
    learner.folded_shipped.refresh()
    return partial(learner.in_precision, learner.speed.attack, learner.folded_shipped.view)
