"""Robust fine-tuning: one loop for every method in objectives.METHODS, resumable to the bit.

    tuned = finetune(model, (x_train, y_train), (x_val, y_val), Threat("linf", "8/255"))

Every random draw depends on (seed, epoch, step) alone, and the state after each epoch lies in `checkpoints`, so that a
run that was killed ends with the weights of one that was not. Weights are selected by validation RA; the test part
has no way in.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm

from autolora.attacks.pgd import frozen, pgd
from autolora.automation import Controller, Measured, Scalars, scalars
from autolora.branch import Branch, head_parameters, natural_view
from autolora.data import AUGMENTATIONS, augmentation, centre, place, take, to_pixels
from autolora.files import replacing, weights_sha256
from autolora.objectives import METHODS, REFERENCES, Method, Reference
from autolora.threat import Threat

ATTACK_STEPS = 10
EVALUATION_BATCH = 512
DIVERGED = 1e4  # a loss above this never comes back

Images = Tensor | np.ndarray
Split = tuple[Images, Any]
Record = dict[str, Any]


class Diverged(ValueError):
    """The loss is no number any more, or beyond all bounds."""


@dataclass(frozen=True)
class Settings:
    """All that determines a run, the network and the data apart."""

    threat: Threat
    method: str = "autolora"
    reference: str = "paper"
    epochs: int = 60
    batch_size: int = 128
    seed: int = 0
    augmentation: str = "auto"
    rate: float | None = None  # None: the method's own; for searches over the baselines' learning rate
    decay: float | None = None
    gamma: float = 1.0  # TWINS only
    average: float | None = None  # decay of averaged weights, validated and shipped in place of the last ones


@dataclass
class Tuned:
    """What fine-tuning gives: the best state by validation, and how it went."""

    model: nn.Module
    branch: Branch | None
    history: list[Record]
    best_epoch: int
    method: str
    settings: Settings
    checkpoint: Path | None = None

    @property
    def best(self) -> Record:
        return self.history[self.best_epoch - 1]


def finetune(
    model: nn.Module,
    train: Split,
    val: Split,
    threat: Threat,
    method: str = "autolora",
    epochs: int = 60,
    seed: int = 0,
    *,
    reference: str = "paper",
    batch_size: int = 128,
    augmentation: str = "auto",
    rate: float | None = None,
    decay: float | None = None,
    gamma: float = 1.0,
    average: float | None = None,
    checkpoints: str | Path | None = None,
    on_epoch: Callable[[Record], None] | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Tuned:
    """Tune a copy of `model` on (images, labels); images: uint8 [n,3,h,w] or floats in [0,1], in memory or mapped."""
    settings = Settings(threat, method, reference, epochs, batch_size, seed, augmentation, rate, decay, gamma, average)
    check_settings(settings)
    train, val = as_split(train, "training"), as_split(val, "validation")
    check_splits(model, train, val)
    run = Run(model, train, val, settings, torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    file = checkpoint_file(checkpoints, model, train, val, settings)
    with own_randomness():
        return fit(run, file, on_epoch or (lambda record: None), progress)


# --- what is given ---------------------------------------------------------------------------------------------------


def as_split(split: Split, name: str) -> tuple[Images, Tensor]:
    images, labels = split
    labels = torch.as_tensor(np.asarray(labels))
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name} images have the shape {tuple(images.shape)}: expected [n, 3, height, width]")
    if str(images.dtype).removeprefix("torch.") not in ("uint8", "float32", "float64"):
        raise ValueError(f"{name} images are {images.dtype}: expected uint8, or floats in [0, 1]")
    if labels.shape != (len(images),) or labels.dtype.is_floating_point:
        raise ValueError(f"{name} labels: {labels.dtype} {tuple(labels.shape)}, expected {len(images)} whole numbers")
    return images, labels.long()


def check_splits(model: nn.Module, train: tuple[Images, Tensor], val: tuple[Images, Tensor]) -> None:
    (x, y), (x_val, y_val) = train, val
    for name, labels in (("training", y), ("validation", y_val)):
        if len(labels) == 0:
            raise ValueError(f"the {name} part is empty")
    if len(found := y.unique()) < 2:
        raise ValueError(f"the training part holds only class {found.item()}: at least two are needed")
    if missing := set(found.tolist()) - set(y_val.tolist()):
        raise ValueError(
            f"no validation image of class {', '.join(map(str, sorted(missing)))}: enlarge data.validation_fraction"
        )
    if x_val.shape[-1] > x.shape[-1]:
        raise ValueError(f"training images are smaller ({x.shape[-1]} pixels) than those of validation")
    with torch.no_grad(), frozen(model):
        device = next(model.parameters()).device
        classes = model(to_pixels(take(x_val, torch.arange(1), device)).to(next(model.parameters()).dtype)).shape[-1]
    if classes < 2:
        raise ValueError(f"the network has {classes} class: at least two are needed")
    for name, labels in (("training", y), ("validation", y_val)):
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(
                f"{name} labels go from {int(labels.min())} to {int(labels.max())}, "
                f"but the network knows the classes 0 to {classes - 1}"
            )


def check_settings(settings: Settings) -> None:
    choices = (("method", METHODS), ("reference", REFERENCES), ("augmentation", AUGMENTATIONS))
    for key, allowed in choices:
        if getattr(settings, key) not in allowed:
            raise ValueError(f"finetune.{key} is {getattr(settings, key)!r}: expected one of {', '.join(allowed)}")
    for key, least in (("epochs", 1), ("batch_size", 2)):
        if getattr(settings, key) < least:
            raise ValueError(f"finetune.{key} is {getattr(settings, key)}: expected at least {least}")


# --- the network in training -----------------------------------------------------------------------------------------


class Run:
    """The network in training with all that changes: this is what objectives see, and what a checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        train: tuple[Images, Tensor],
        val: tuple[Images, Tensor],
        settings: Settings,
        device: torch.device,
    ) -> None:
        self.settings, self.device = settings, device
        self.method: Method = METHODS[settings.method]
        self.reference: Reference = REFERENCES[settings.reference]
        self.gamma = settings.gamma
        self.model = copy.deepcopy(model).to(device).requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = head_parameters(self.model)
        self.branch = self._branch() if "branch" in self.method.parts else None
        self.norms = Norms(self.model).to(device) if "norms" in self.method.parts else None
        self.images, self.labels = place(train[0], device), train[1].to(device)
        self.val_images, self.val_labels = place(val[0], device), val[1].to(device)
        self.size = val[0].shape[-1]
        self.augment = augmentation(settings.augmentation, train[0].shape[-1], self.size)
        self.objective = (settings.reference == "released" and self.method.released) or self.method.objective
        self.controller: Controller = (self.method.controller or self.reference.controller)(
            self.method.rate if settings.rate is None else settings.rate, settings.epochs
        )
        self.optimiser = self._optimiser()
        self.weights = scalars(0.0)
        self.total = settings.batch_size  # images in the global batch
        self.attacked: Tensor | None = None
        self.generator = torch.Generator(device)

    def _branch(self) -> Branch:
        generator = torch.Generator().manual_seed(number(self.settings.seed, "branch"))
        return Branch(self.reference.layers(self.model), generator=generator).to(self.device)

    def _optimiser(self) -> torch.optim.SGD:
        if self.method.head_only:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in self.head)
        parameters = [p for module in self.modules() for p in module.parameters() if p.requires_grad]
        decay = self.method.decay if self.settings.decay is None else self.settings.decay
        return torch.optim.SGD(parameters, self.controller.rate, momentum=0.9, weight_decay=decay)

    def modules(self) -> list[nn.Module]:
        return [m for m in (self.model, self.branch, self.norms) if m is not None]

    # what objectives ask for

    def attack(self, x: Tensor, y: Tensor) -> Tensor:
        with frozen(self.model):
            self.attacked = pgd(self.model, x, y, self.settings.threat, ATTACK_STEPS, generator=self.generator)
        return self.attacked

    def plain(self, x: Tensor) -> Tensor:
        return self.model(x)

    def natural(self, x: Tensor) -> Tensor:
        assert self.branch is not None
        return natural_view(self.model, self.branch, self.head, x)

    def still(self, x: Tensor) -> Tensor:
        with evaluating(self.model):
            return self.model(x)

    def frozen(self, x: Tensor) -> Tensor:
        assert self.norms is not None
        return self.norms.view(self.model, x)

    def mean(self, values: Tensor) -> Tensor:
        return values.sum() / self.total

    def halves(self, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        half = len(tensors[0]) // 2
        return [t[:half] for t in tensors], [t[half:] for t in tensors]

    # state

    def state(self) -> dict[str, Any]:
        return {str(i): module.state_dict() for i, module in enumerate(self.modules())}

    def load(self, state: dict[str, Any]) -> None:
        for i, module in enumerate(self.modules()):
            module.load_state_dict(state[str(i)])


class Norms(nn.Module):
    """TWINS' frozen half: the pre-trained running statistics, and an affine copy of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        norms = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            raise ValueError("finetune.method is 'twins': the network has no batch norm, which TWINS is made of")
        self.names = [n for n, m in norms if m.affine]
        self.weight = nn.ParameterList([m.weight.detach().clone() for _, m in norms if m.affine])
        self.bias = nn.ParameterList([m.bias.detach().clone() for _, m in norms if m.affine])
        self.buffered = [f"{n}.{b}" for n, m in norms for b, _ in m.named_buffers()]
        for i, name in enumerate(self.buffered):
            self.register_buffer(f"pretrained{i}", model.get_buffer(name).clone())

    def view(self, model: nn.Module, x: Tensor) -> Tensor:
        replaced: dict[str, Tensor] = {}
        for name, weight, bias in zip(self.names, self.weight, self.bias):
            replaced |= {f"{name}.weight": weight, f"{name}.bias": bias}
        replaced |= {name: self.get_buffer(f"pretrained{i}") for i, name in enumerate(self.buffered)}
        with evaluating(*(m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))):
            return functional_call(model, replaced, (x,))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """These modules in eval, parameters as they are."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """Where a run stands after an epoch."""

    epoch: int = 0
    steps: int = 0
    stopped: bool = False
    best_epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)


def fit(run: Run, file: Path | None, on_epoch: Callable[[Record], None], progress: bool) -> Tuned:
    settings = run.settings
    done = restore(run, file)
    if done.epoch == 0 and run.branch is not None:
        run.weights = scalars(natural_accuracy(run))
    for record in done.history:
        on_epoch(record)
    batches = -(-len(run.labels) // settings.batch_size)
    bar = tqdm(
        total=settings.epochs * batches,
        initial=done.epoch * batches,
        desc=settings.method,
        unit="step",
        mininterval=1,
        disable=not progress,
    )
    with bar:
        while done.epoch < settings.epochs and not done.stopped:
            record = one_epoch(run, done, bar, file)
            keep(run, done, file)
            bar.set_postfix(shown(record))
            on_epoch(record)
    run.load(done.best)
    if not run.method.attacked:  # no attack takes part in these methods: one number, for the best state
        done.history[done.best_epoch - 1]["val_robust"] = fraction(robust_hits(run))
    model = run.model.eval().requires_grad_(False)
    return Tuned(model, run.branch, done.history, done.best_epoch, settings.method, settings, file)


def one_epoch(run: Run, done: Progress, bar: tqdm, file: Path | None) -> Record:
    start, epoch = time.perf_counter(), done.epoch + 1
    rate, weights = run.controller.rate, run.weights
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    losses, cosine = train_epoch(run, epoch, bar, file)
    done.steps += len(losses)
    means = losses.mean(0).tolist()
    accuracy = means[4]
    if run.branch is not None:
        accuracy = natural_accuracy(run)
        run.weights = scalars(accuracy)  # of the network as trained: a restore below does not change it
    clean = clean_hits(run)
    robust = robust_hits(run) if run.method.attacked else None
    score = clean if robust is None else robust
    verdict = run.controller.observe(Measured(epoch, done.steps, fraction(score), tuple(score.tolist())))
    if verdict.best:
        done.best, done.best_epoch = copy.deepcopy(run.state()), epoch
    if verdict.restore:
        run.load(done.best)
    seconds = time.perf_counter() - start
    record = {
        "epoch": epoch,
        "lr": rate,
        "lambda1": weights.lambda1 if run.branch else None,
        "lambda2": weights.lambda2 if run.branch else None,
        **dict(zip(("loss", "loss_natural", "loss_adversarial", "loss_kl"), means)),
        "natural_accuracy": accuracy,
        "val_clean": fraction(clean),
        "val_robust": None if robust is None else fraction(robust),
        "gradient_cosine": cosine,
        "event": verdict.event,
        "seconds": seconds,
        "images_per_second": len(run.labels) / seconds,
        "peak_memory_mb": peak_memory(run.device),
    }
    done.history.append(record)
    done.epoch, done.stopped = epoch, verdict.stop
    return record


def train_epoch(run: Run, epoch: int, bar: tqdm, file: Path | None) -> tuple[Tensor, float | None]:
    """One pass over the training set: [steps,5] means per batch, and the cosine of the first batch's gradients."""
    seed, size = run.settings.seed, run.settings.batch_size
    torch.manual_seed(number(seed, "dropout", epoch))
    order = torch.randperm(len(run.labels), generator=generator(seed, "order", epoch))
    batches = [b for b in order.split(size) if len(b) > 1]  # batch norm needs two
    losses = torch.zeros(len(batches), 5, device=run.device)
    cosine = None
    run.model.train()
    for step, index in enumerate(batches):
        x = run.augment(take(run.images, index, run.device), generator(seed, "augment", epoch, step))
        x = to_pixels(x).contiguous(memory_format=torch.channels_last)
        y = run.labels[index.to(run.device)]
        run.generator.manual_seed(number(seed, "attack", epoch, step))
        run.total = len(index)
        result = run.objective(run, x, y, run.weights)
        run.optimiser.zero_grad()
        result.total.backward()
        if step == 0 and run.method.attacked:
            cosine = gradient_cosine(run, x, y)
        run.optimiser.step()
        losses[step] = torch.stack([t.detach() for t in result])
        bar.update()
        if step % 50 == 49 or step == len(batches) - 1:
            check_losses(losses[: step + 1], epoch, file)
    return losses, cosine


def check_losses(losses: Tensor, epoch: int, file: Path | None) -> None:
    bad = ~torch.isfinite(losses).all(1) | (losses[:, 0].abs() > DIVERGED)
    if bad.any():
        step = int(bad.int().argmax())
        kept = (
            f"the last good state, after epoch {epoch - 1}, is in {file}" if file else "no checkpoints were asked for"
        )
        raise Diverged(
            f"the loss is {losses[step, 0].item():g} in epoch {epoch}, step {step + 1}: training diverged; {kept}. "
            "Look at the images (reports/, data/quality.json) and at the weights of the backbone, or use a lower rate."
        )


def gradient_cosine(run: Run, x: Tensor, y: Tensor, most: int = 64) -> float | None:
    """Cosine between the gradients of CE(h(x), y) and CE(h(x~), y) at theta1: the paper's diagnosis of conflict."""
    if run.attacked is None:
        return None
    extractor = [p for n, p in run.model.named_parameters() if n not in run.head]
    with evaluating(run.model):
        gradients = [
            torch.autograd.grad(F.cross_entropy(run.model(images[:most]), y[:most]), extractor, allow_unused=True)
            for images in (x, run.attacked)
        ]
    pairs = [(a, b) for a, b in zip(*gradients) if a is not None]
    dot, aa, bb = (
        sum((u * v).sum() for u, v in p) for p in (pairs, [(a, a) for a, _ in pairs], [(b, b) for _, b in pairs])
    )
    return float(dot / (aa * bb).sqrt().clamp_min(1e-20))


@torch.no_grad()
def natural_accuracy(run: Run) -> float:
    """SA of the natural branch on the training images as they are, in eval: what lambda1 and lambda2 are made of."""
    assert run.branch is not None
    weights: dict[str, Tensor] = dict(run.model.named_parameters())
    weights |= {n: weights[n] + delta for n, delta in run.branch.deltas().items()}
    with evaluating(run.model):
        return fraction(hits(lambda x: functional_call(run.model, weights, (x,)), run, run.images, run.labels))


def clean_hits(run: Run) -> Tensor:
    """Which validation images are classified well; branch off."""
    with frozen(run.model):
        return hits(run.model, run, run.val_images, run.val_labels)


def robust_hits(run: Run) -> Tensor:
    """The same after PGD-10 without random start."""
    with frozen(run.model):
        return hits(run.model, run, run.val_images, run.val_labels, run.settings.threat)


def hits(
    view: Callable[[Tensor], Tensor], run: Run, images: Images, labels: Tensor, threat: Threat | None = None
) -> Tensor:
    """bool [n]: is the image, or the attacked one, classified well?"""
    right = []
    for index in torch.arange(len(labels)).split(EVALUATION_BATCH):
        x = centre(to_pixels(take(images, index, run.device)), run.size).contiguous(memory_format=torch.channels_last)
        y = labels[index.to(run.device)]
        if threat is not None:
            x = pgd(view, x, y, threat, ATTACK_STEPS, random_start=False)
        with torch.no_grad():
            right.append(view(x).argmax(1) == y)
    return torch.cat(right).cpu()


def fraction(right: Tensor) -> float:
    return int(right.sum()) / len(right)


def shown(record: Record) -> dict[str, str]:
    names = {"loss": "loss", "SA": "val_clean", "RA": "val_robust", "lr": "lr"}
    return {short: f"{record[name]:.3g}" for short, name in names.items() if record[name] is not None}


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    import resource
    import sys

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


# --- randomness and checkpoints --------------------------------------------------------------------------------------


def number(seed: int, *what: object) -> int:
    """A seed of its own for each purpose, epoch and step."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *what))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *what: object) -> torch.Generator:
    return torch.Generator().manual_seed(number(seed, *what))


@contextmanager
def own_randomness() -> Iterator[None]:
    """The caller's global random state is left as it was."""
    with torch.random.fork_rng():
        yield


def checkpoint_file(
    folder: str | Path | None, model: nn.Module, train: Split, val: Split, settings: Settings
) -> Path | None:
    """One file per run, named after all that determines it: a stale one is never picked up."""
    if folder is None:
        return None
    digest = hashlib.sha256(repr(asdict(settings)).encode())
    digest.update(weights_sha256(model.state_dict()).encode())
    for images, labels in (train, val):
        for i in range(0, len(images), 1024):
            chunk = images[i : i + 1024]
            digest.update(np.ascontiguousarray(chunk.cpu().numpy() if isinstance(chunk, Tensor) else chunk).data)
        digest.update(np.asarray(labels).astype("<i8").data)
    return Path(folder) / f"{settings.method}-{digest.hexdigest()[:16]}.pt"


def keep(run: Run, done: Progress, file: Path | None) -> None:
    if file is None:
        return
    saved = {
        "modules": run.state(),
        "optimiser": run.optimiser.state_dict(),
        "controller": run.controller.state(),
        "weights": tuple(run.weights),
        "progress": asdict(done),
    }
    with replacing(file) as part:
        torch.save(saved, part)


def restore(run: Run, file: Path | None) -> Progress:
    if file is None or not file.exists():
        return Progress()
    saved = torch.load(file, map_location=run.device, weights_only=True)
    run.load(saved["modules"])
    run.optimiser.load_state_dict(saved["optimiser"])
    run.controller.load(saved["controller"])
    run.weights = Scalars(*saved["weights"])
    return Progress(**saved["progress"])
