"""Robust fine-tuning: one loop for every method in objectives.METHODS, resumable to the bit.

    tuned = finetune(model, (x_train, y_train), (x_val, y_val), Threat("linf", "8/255"))

Every random draw depends on (seed, epoch, step) alone, and the state after each epoch lies in `checkpoints`, so that a
run that was killed ends with the weights of one that was not. Weights are selected by validation RA; the test part
has no way in.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from autolora.backbones.classifier import Spec
from autolora.backbones.frozen import evaluating
from autolora.common import distributed
from autolora.common.malloc import freed_memory_kept
from autolora.common.processes import peak_memory
from autolora.common.progress import bar as progress_bar
from autolora.data.batches import moved, stream, to_pixels
from autolora.threat import Threat
from autolora.training.attack import reach
from autolora.training.axes import FIRST_PASS, TEACHERS, TWIN
from autolora.training.branch import Branch
from autolora.training.controllers import scalars
from autolora.training.diverged import Diverged, check_losses, check_weights
from autolora.training.judgement import judge_epoch
from autolora.training.learner import Learner, generator, number
from autolora.training.measuring import natural_hits, robust_hits
from autolora.training.objectives import Losses
from autolora.training.phases import best_blocks, first_pass, robust_head, twin
from autolora.training.possible import batches, check_possible
from autolora.training.resume import Record, RunState, alone, checkpoint_file, forget, keep, restore
from autolora.training.robust_already import in_words, with_schedule
from autolora.training.settings import (
    Settings,
    Split,
    as_split,
    check_call,
    check_settings,
    check_splits,
    decided,
    plain_number,
)
from autolora.training.teachers import SPEED, Teachers, from_files
from autolora.training.weight_attack import WAITS

SLOWER = 4  # times, where training diverges at a rate that was found
LOOK = 50  # steps between two looks at the losses: each look waits for the device
TERMS = ("loss", "loss_natural", "loss_adversarial", "loss_kl", "batch_accuracy")


@dataclass(repr=False)
class Tuned:
    """What fine-tuning gives: the best state by validation, and how it went."""

    model: nn.Module
    branch: Branch | None
    history: list[Record]
    best_epoch: int
    method: str
    settings: Settings
    checkpoint: Path | None = None
    head: list[Record] | None = None  # of the epochs before, in which the head alone was tuned
    first_pass: list[Record] | None = None  # of the run that made the teacher
    tries: list[Record] = field(default_factory=list)  # of blocks that were trained shortly, to choose from
    features_moved: float | None = None  # by an attacker, before training, where the schedule was chosen by it
    right: list[bool] = field(default_factory=list)  # per validation image, by the best state: what it was chosen by

    @property
    def best(self) -> Record:
        return self.history[self.best_epoch - 1]

    def rows(self) -> list[tuple[str, str]]:
        """What people want to know, a line each."""
        best, settings = self.best, self.settings
        found = f"clean {100 * best['val_clean']:.1f} %, under PGD {100 * best['val_robust']:.1f} %"
        branch = f"rank {self.branch.rank}, {len(self.branch.names)} layers" if self.branch else "none"
        return [
            ("method", f"{self.method} ({settings.reference}) against {settings.threat}, seed {settings.seed}"),
            ("network", f"{type(self.model).__name__}, {sum(p.numel() for p in self.model.parameters()):,} weights"),
            ("branch", branch),
            *([] if settings.blocks is None else [("trained", ", ".join([*settings.blocks, "head"]))]),
            *([] if self.head is None else [("before", f"{len(self.head)} epochs of the head alone, attacked")]),
            *([] if self.features_moved is None else [("eps", in_words(self.features_moved))]),
            ("epochs", f"{len(self.history)} of {settings.epochs}, the best one is {self.best_epoch}"),
            ("chosen", f"{found} of the validation images"),
            ("next", "autolora.merge(tuned) gives the network to attack and to export"),
        ]

    def __repr__(self) -> str:
        """In lines, where the fields would be pages of layers and records."""
        return "\n".join(["Tuned", *(f"  {name:<8}{said}" for name, said in self.rows())])

    def _repr_html_(self) -> str:
        """In a notebook."""
        cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(said)}</td></tr>" for name, said in self.rows())
        return f"<table>{cells}</table>"


def finetune(
    model: nn.Module,
    train: tuple[Any, Any],
    val: tuple[Any, Any],
    threat: Threat,
    *,
    method: str = "autolora",
    epochs: int = 60,
    seed: int = 0,
    checkpoints: str | Path | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    image_memory: float | None = None,
    **settings: Any,
) -> Tuned:
    """Tune a copy of `model` on (images, labels); images: uint8 [n,3,h,w] or floats in [0,1], in memory or mapped.

    `checkpoints` is a folder to go on from; `on_epoch` is called with the record of each epoch that is trained. Images
    of more than `image_memory` bytes (None: a quarter of what is free) stay in their file. Further settings (reference,
    batch_size, augmentation, ...) are those of `settings.Settings`. What the caller has frozen is trained all the same:
    `trains` says what is not.
    """
    check_call(model, threat, settings)
    settings |= {key: str(settings[key]) for key in TEACHERS if isinstance(settings.get(key), Path)}
    given = {"epochs": epochs, "seed": seed, **settings}
    asked = Settings(threat, method, **{key: plain_number(value) for key, value in given.items()})
    check_settings(asked)
    train, val = as_split(train, "training"), as_split(val, "validation")
    check_splits(model, train, val)
    model = of_size(model, val[0].shape[-1])
    with distributed.group(), freed_memory_kept():
        check_possible(model, decided(asked, train), len(train[1]))
        first = progress and distributed.process_number() == 0
        way = Way(checkpoints, pick_device(device), on_epoch or (lambda record: None), first, image_memory)
        return in_phases(model, train, val, asked, way)


def of_size(model: nn.Module, size: int) -> nn.Module:
    """A classifier says of itself which images it takes, in every file that is made of it: those of its validation."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Spec) or spec.image_size == size or spec.options.get("dynamic_img_size"):
        return model
    model = copy.copy(model)
    model.spec = replace(spec, image_size=size)  # type: ignore[assignment]
    return model


class Way(NamedTuple):
    """How a run is made, which does not change what it comes to."""

    checkpoints: str | Path | None
    device: torch.device
    on_epoch: Callable[[Record], None]
    show: bool
    memory: float | None


def in_phases(model: nn.Module, train: Split, val: Split, asked: Settings, way: Way) -> Tuned:
    """The run itself, and before it those that it needs: the twin, the head alone, the first pass, short runs for its
    blocks. Each is resumed by itself."""
    read, silent = from_files(asked, model, val), way._replace(on_epoch=lambda _: None)
    settings, moved_by = with_schedule(decided(asked, train), model, train, val[0].shape[-1], way.device)
    natural = read.get("natural_teacher")
    if settings.natural_teacher == TWIN:
        natural = run(model, train, val, decided(twin(asked), train), silent).model
    if moved_by is not None and way.show:
        tqdm.write(in_words(moved_by), file=sys.stderr)
    head = before = teachers = None
    if settings.start == "robust_head":
        head = run(model, train, val, robust_head(settings), silent)
        model = head.model
    if settings.teacher == FIRST_PASS:
        before = run(model, train, val, first_pass(settings), silent)
    if settings.teacher is not None:
        teachers = Teachers(before.model if before else read["teacher"], natural)
    tries: list[Record] = []
    if settings.trains == "blocks" and settings.blocks is None:
        file = checkpoint_file(way.checkpoints, model, train, val, settings, way.device, teachers=teachers)

        def tried(shorter: Settings) -> list[bool]:
            tuned = run(model, train, val, shorter, silent, teachers=teachers)
            forget(tuned.checkpoint)
            return tuned.right

        blocks, tries = best_blocks(tried, model, settings, file)
        settings = replace(settings, blocks=blocks)
    tuned = run(model, train, val, settings, way, teachers=teachers)
    tuned.head, tuned.first_pass = head.history if head else None, before.history if before else None
    tuned.tries, tuned.features_moved = tries, moved_by
    return tuned


def run(
    model: nn.Module, train: Split, val: Split, settings: Settings, way: Way, *, teachers: Teachers | None = None
) -> Tuned:
    """Where training diverges at a rate that was found, once more from the start, at a part of it."""
    file = checkpoint_file(way.checkpoints, model, train, val, settings, way.device, teachers=teachers)
    with alone(file), torch.random.fork_rng([way.device] if way.device.type == "cuda" else []):
        learner = Learner(model, train, val, settings, way.device, image_memory=way.memory, teachers=teachers)
        first, decay = learner.controller.rate, learner.optimiser.defaults["weight_decay"]
        try:
            return fit(learner, file, way.on_epoch, show=way.show)
        except Diverged as error:
            if settings.rate is not None or not learner.reference.finds_rate:
                raise
            tqdm.write(f"{error} Once more from the start, at the rate {first / SLOWER:g}.", file=sys.stderr)
        del learner  # its images and networks, of which there is not room for two everywhere
    return run(model, train, val, replace(settings, rate=first / SLOWER, decay=decay), way, teachers=teachers)


def pick_device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def fit(learner: Learner, file: Path | None, on_epoch: Callable[[Record], None], *, show: bool) -> Tuned:
    settings = learner.settings
    done = restore(learner, file)
    if done.epoch == 0 and learner.branch is not None:
        learner.weights = scalars(fraction(natural_hits(learner)))
    steps = len(epoch_batches(learner, 1))
    total, done_before = settings.epochs * steps, done.epoch * steps
    bar = progress_bar(total, settings.method, initial=done_before, disable=not show)
    with bar:
        while done.epoch < settings.epochs and not done.stopped:
            record = one_epoch(learner, done, bar, file)
            keep(learner, done, file)
            bar.set_postfix(shown(record))
            on_epoch(record)
    return finish(learner, done, file)


def finish(learner: Learner, done: RunState, file: Path | None) -> Tuned:
    """The best state, in eval and without gradients."""
    learner.load(done.best)
    if not learner.method.attacked:  # no attack takes part in these methods: one number, for the best state
        done.history[done.best_epoch - 1]["val_robust"] = fraction(robust_hits(learner))
    settings, history = learner.settings, done.history
    tuned = Tuned(learner.finished(), learner.branch, history, done.best_epoch, settings.method, settings, file)
    tuned.right = done.kept
    return tuned


def one_epoch(learner: Learner, done: RunState, bar: tqdm, file: Path | None) -> Record:
    """Train, measure, and do what the controller says."""
    start, epoch = time.perf_counter(), done.epoch + 1
    rate, weights = learner.controller.rate, learner.weights
    learner.attacker.reach = reach(learner.settings, epoch)
    learner.perturbs = learner.settings.weight_attack is not None and epoch > learner.settings.epochs // WAITS
    losses, cosine = train_epoch(learner, epoch, rate, bar, file)
    check_weights(learner.trained, epoch, file)
    means = dict(zip(TERMS, losses.mean(0).tolist()))
    accuracy = means["batch_accuracy"]
    if learner.branch is not None:
        accuracy = fraction(natural_hits(learner))
        learner.weights = scalars(accuracy)  # of the network as trained: a restore below does not change it
    done.epoch, done.steps = epoch, done.steps + len(losses)
    clean, robust, event = judge_epoch(learner, done)
    seconds = time.perf_counter() - start
    record = {
        "epoch": epoch,
        "lr": rate,
        "lambda1": weights.lambda1 if learner.branch else None,
        "lambda2": weights.lambda2 if learner.branch else None,
        **means,
        "natural_accuracy": accuracy,
        "val_clean": None if clean is None else fraction(clean),
        "val_robust": None if robust is None else fraction(robust),
        "gradient_cosine": cosine,
        "event": event,
        "seconds": seconds,
        "images_per_second": len(learner.labels) / seconds,
        "peak_memory_mb": megabytes(learner.device),
    }
    done.history.append(record)
    return record


def epoch_batches(learner: Learner, epoch: int) -> list[Tensor]:
    """The global batches of an epoch, in the order that (seed, epoch) gives."""
    order = torch.randperm(len(learner.labels), generator=generator(learner.settings.seed, "order", epoch))
    return batches(learner.settings, order)


def train_epoch(learner: Learner, epoch: int, rate: float, bar: tqdm, file: Path | None) -> tuple[Tensor, float | None]:
    """One pass over the training set: [steps,5] of TERMS, and the cosine of the first batch's gradients."""
    torch.manual_seed(number(learner.settings.seed, "dropout", epoch, distributed.process_number() or ""))
    for group in learner.optimiser.param_groups:
        group["lr"] = rate
    order = epoch_batches(learner, epoch)
    losses = torch.zeros(len(order), len(TERMS), device=learner.device)
    cosine = None
    learner.train()
    images = stream(learner.images, map(distributed.mine, order), learner.device)
    for step, (index, stored) in enumerate(zip(order, images)):
        x, y = prepare(learner, stored, index, epoch, step)
        attacked = learner.attack(x, y)
        look = partial(gradient_cosine, learner, x, attacked, y) if step == 0 and learner.method.attacked else None
        losses[step], found = one_step(learner, x, attacked, y, look)
        cosine = cosine if found is None else found
        bar.update()
        if step % LOOK == LOOK - 1 or step == len(order) - 1:
            seen = losses[step - step % LOOK : step + 1].clone()
            distributed.add([seen])
            losses[step - step % LOOK : step + 1] = seen
            check_losses(losses[: step + 1], epoch, file)
    return losses, cosine


def prepare(learner: Learner, stored: Tensor, index: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
    """This process' part of a global batch: augmented pixels and labels; of mixed images [n,classes].
    Draws are for the whole batch."""
    seed = learner.settings.seed
    learner.begin(number(seed, "attack", epoch, step), len(index))
    draws = learner.variety.now.draw(len(index), generator(seed, "augment", epoch, step))
    x = learner.laid_out(to_pixels(learner.variety.now.apply(stored, distributed.mine(draws))).to(learner.dtype))
    y = learner.labels[moved(distributed.mine(index), learner.device)]
    return learner.cutmix(x, y) if learner.settings.augmentation == "cutmix" else (x, y)


def one_step(
    learner: Learner, x: Tensor, attacked: Tensor, y: Tensor, look: Callable[[], float | None] | None = None
) -> tuple[Tensor, float | None]:
    """One backward, one SGD step; the losses of the batch, and what `look` saw between the two."""
    with distributed.global_norms():
        if learner.perturbs:
            learner.perturb_weights(x, attacked, y)
        losses = learner.losses(x, attacked, y)
        learner.optimiser.zero_grad()
        losses.total.backward()
    seen = look() if look else None
    learner.step()
    if (straight := learner.attacker.straight) is not None and learner.attacker.straightens:
        distributed.add([learner.bend])
        straight.observe(learner.bend.item())
    if learner.balance is not None:
        balance(learner, losses)
    if learner.average is not None:
        learner.average.update_parameters(learner.model)
    return torch.stack([t.detach().float() for t in losses]), seen


def balance(learner: Learner, losses: Losses) -> None:
    """Of two teachers; slower as the learning rate falls."""
    assert learner.balance is not None
    divergences = torch.stack([losses.adversarial, losses.natural]).detach()
    distributed.add([divergences])
    adversarial, natural = divergences.tolist()
    learner.balance.observe(adversarial, natural, SPEED * learner.controller.rate / learner.first_rate)


def gradient_cosine(learner: Learner, x: Tensor, attacked: Tensor, y: Tensor, most: int = 64) -> float | None:
    """Cosine between the gradients of CE(h(x), y) and CE(h(x~), y) at theta1: the paper's diagnosis of conflict."""
    count = distributed.part(min(most, learner.global_batch))
    extractor = [p for n, p in learner.model.named_parameters() if n not in learner.head and p.requires_grad]
    if not extractor:  # a network that is its head alone
        return None
    natural, adversarial = (_flat_gradient(learner, images[:count], y[:count], extractor) for images in (x, attacked))
    return float(F.cosine_similarity(natural, adversarial, dim=0))


def _flat_gradient(learner: Learner, x: Tensor, y: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    with evaluating(learner.model):
        loss = F.cross_entropy(learner.model(x), y, reduction="sum")
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = torch.cat([g.reshape(-1) for g in gradients if g is not None])
    distributed.add([flat])
    return flat


def fraction(right: Tensor) -> float:
    return int(right.sum()) / len(right)


def shown(record: Record) -> dict[str, str]:
    names = {"loss": "loss", "SA": "val_clean", "RA": "val_robust", "lr": "lr"}
    return {short: f"{record[name]:.3g}" for short, name in names.items() if record[name] is not None}


def megabytes(device: torch.device) -> int:
    """That were held at most."""
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
    return round(held / 2**20)
