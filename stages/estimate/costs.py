"""What each stage does, counted in passes of one image through the network; times the price of a pass, its time.

A pass is a forward, an input gradient (an attack's step) or a training step. The counts are those of the code that is
run: PGD-10 in training, PGD-20 for the dial, AutoAttack's budgets. What nobody can know before (how many images stand
under attack, whether training stops early) is taken as the longest case.
"""

from __future__ import annotations

from dataclasses import dataclass

from autolora.training.axes import FIRST_PASS, TWIN
from autolora.training.controllers import between_looks
from autolora.training.single_step import STRAIGHT_UP_TO
from autolora.training.subtuning import short_epochs, short_runs
from stages.common.params import Finetune, Merge

TRAINING_ATTACK, DIAL_ATTACK = 10, 20  # steps of PGD
PLAIN = ("natural", "linear")  # trained without an attack
STEPS = {"madry": 1, "natural": 1}  # training passes over an image; of the other methods two
WATCHED = 32  # training images that are attacked both ways, where training takes one gradient an image
BY_HEART = 512  # training images that are looked at beside the validation images, where augmentation decides by itself
DIAL, DIRECTIONS = 5, 2  # points of the dial in each direction
CRITICAL_IMAGES, ASCENT = 512, 11  # and gradients of each layer's weight on all of them, for merge.toward: critical
TUNING_EPOCHS, TUNING_STEPS, TUNING_BATCH = 10, 1000, 128  # of the one layer: whichever is more


@dataclass(frozen=True)
class Price:
    """Seconds for one image."""

    forward: float
    gradient: float
    step: float

    def of(self, *, forwards: float = 0, gradients: float = 0, steps: float = 0) -> float:
        return forwards * self.forward + gradients * self.gradient + steps * self.step


@dataclass(frozen=True)
class Counts:
    """Images in each part, and classes."""

    train: int
    val: int
    test: int = 0
    classes: int = 0

    @property
    def all(self) -> int:
        return self.train + self.val + self.test


def epoch(price: Price, counts: Counts, section: Finetune, eps: float = 0.0) -> float:
    steps = STEPS.get(section.method, 2)
    if section.method == "madry" and section.augmentation == "interpolate":
        steps += 1  # on natural images too
    if section.method in PLAIN:
        seen = price.forward if section.method == "linear" else price.of(steps=steps)  # the head's gradient is nothing
        return counts.train * seen + counts.val * price.forward
    measured = 1 * (section.method == "autolora")  # the natural branch's accuracy on the training images
    measured += _taught(section)
    perturbed = 0 if section.weight_attack is None else steps  # the gradient that finds the perturbation
    single = section.attack == "single"  # auto may have to go on with ten gradients
    gradients = 1 if single else TRAINING_ATTACK
    straight = 3 if single and eps > STRAIGHT_UP_TO + 1e-9 else 0  # the term of ELLE-A looks at three points more
    revised = steps if section.trains == "prominent" else 0  # of each pass one through the revision, and one way back
    train = price.of(gradients=gradients + revised, steps=steps + perturbed + straight, forwards=measured)
    judged = counts.val * price.of(forwards=2, gradients=TRAINING_ATTACK)
    by_itself = section.reference in ("auto", "best")  # the other rules judge each epoch, and vary images as asked
    if by_itself and section.augmentation == "auto" and section.trains != "head":
        judged += min(BY_HEART, counts.train) * price.forward
    if single:
        judged += min(WATCHED, counts.train) * price.of(forwards=2, gradients=TRAINING_ATTACK + 1)
        judged /= between_looks(counts.train, counts.val, section.epochs) if by_itself else 1
    return counts.train * train + judged


def _taught(section: Finetune) -> int:
    """Forwards of teachers, taken to be as large as the network."""
    return (section.teacher is not None) + (section.natural_teacher is not None)


def at_most(section: Finetune) -> Finetune:
    """The guard may go back to ten gradients after its first look."""
    return section.model_copy(update={"attack": "auto"}) if section.attack == "single" else section


def head_first(price: Price, counts: Counts, epochs: int, norm: str) -> float:
    """The head alone, on images that are attacked through all of the network: on one gradient under Linf."""
    linf, its_own = norm == "linf", max(1, epochs // 2)
    train = price.of(gradients=1 if linf else TRAINING_ATTACK, forwards=1)
    judged = counts.val * price.of(forwards=2, gradients=TRAINING_ATTACK)
    if linf:
        judged += min(WATCHED, counts.train) * price.of(forwards=2, gradients=TRAINING_ATTACK + 1)
        judged /= between_looks(counts.train, counts.val, its_own)
    return its_own * (counts.train * train + judged)


def finetune(
    price: Price, counts: Counts, section: Finetune, blocks: int = 0, eps: float = 0.0, norm: str = "linf"
) -> tuple[float, float]:
    """Of the method, all its members, and of the naturally tuned twin; the network has so many blocks."""
    robust, twin = (
        section.epochs * epoch(price, counts, section.model_copy(update={"method": method}), eps)
        for method in (section.method, "natural")
    )
    if section.teacher == FIRST_PASS:
        first = section.model_copy(update={"method": "autolora", "teacher": None, "natural_teacher": None})
        robust += section.epochs * epoch(price, counts, first, eps)
    if section.start == "robust_head":
        robust += head_first(price, counts, section.epochs, norm)
    if section.trains == "blocks":
        short = section.model_copy(update={"epochs": short_epochs(section.epochs)})
        robust += short_runs(blocks) * short.epochs * epoch(price, counts, short, eps)
    own_twins = (section.members - 1) * (section.natural_teacher == TWIN)  # the first member's is that of the stage
    return section.members * robust + own_twins * twin, twin


def dial(price: Price, counts: Counts, points: int) -> float:
    return points * counts.val * price.of(gradients=DIAL_ATTACK, forwards=2)


def points_of_the_dial(section: Merge, method: str, members: int = 1) -> int:
    """Networks that are judged on the validation part, those of a greedy soup too."""
    directions = (DIRECTIONS if method == "autolora" else 1) + (section.toward == "critical")
    alone = method != "autolora"  # without a branch, of that direction the point at 0
    return DIAL * directions + alone + (section.alpha != "auto") + (2 * members - 1) * (section.soup == "greedy")


def mixture(price: Price, counts: Counts) -> float:
    """A mapping is chosen by the robust network's answers; then the mixture of two networks is judged three ways."""
    return counts.val * price.of(gradients=6 * DIAL_ATTACK, forwards=10)


def critical(price: Price, counts: Counts, layers: int) -> float:
    """At most: a gradient that ends at one layer's weight costs no more than one that goes down to the pixels."""
    n = min(counts.train, CRITICAL_IMAGES)
    steps = -(-counts.train // TUNING_BATCH)
    epochs = max(TUNING_EPOCHS, -(-TUNING_STEPS // steps))
    gradients = n * (TRAINING_ATTACK + layers * ASCENT) + epochs * counts.train
    return price.of(gradients=gradients)
