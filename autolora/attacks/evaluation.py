"""What is constant while one network is evaluated, and the one way in for `autoattack`, `black_box` and `eps_curve`.

    with opened(model, images, threat, Settings(seed=0)) as e:
        e.network.logits(e.x), e.clean, e.targets

The path of an image: `TestImages` holds it; `opened` moves all of them to the device; `e.logits` are what the network
says of them; a `Step` attacks those that still stand; the `Report` says which are left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.attacks.engine.answers import require_logits
from autolora.attacks.engine.fast_copies import Copies, quick_copies
from autolora.attacks.engine.file_network import FileNetwork
from autolora.attacks.engine.journal import Journal
from autolora.attacks.engine.network import Averaged, Network, predicted
from autolora.attacks.engine.onnx_network import InOnnxruntime
from autolora.attacks.engine.prepare import at_rest, default_batch, device_of, full_precision, likely
from autolora.attacks.forecast import Forecast
from autolora.attacks.malt import nearest_first
from autolora.attacks.versions import Budget, Step, work
from autolora.common import distributed
from autolora.common.files import weights_sha256
from autolora.common.malloc import freed_memory_kept, freed_memory_returned
from autolora.data.images import TestImages
from autolora.threat import Threat

Answers = Callable[[Tensor], Tensor]  # [0,1] pixels -> logits


@dataclass(frozen=True)
class Settings:
    """What a caller chooses."""

    version: str = "standard"
    seed: int = 0
    precision: str = "float32"
    budget: Budget = field(default_factory=Budget)
    batch_size: int | None = None
    progress: str | Path | None = None
    show: bool = True
    tell: Callable[[float], object] | None = None  # hears, once, how many seconds the attacks may take
    gradients: bool = True  # False: the network is asked for scores alone
    device: torch.device | None = None  # where the network lives, where it has no parameters to tell


@dataclass
class Evaluation:
    model: Answers  # as the caller gave it
    network: Network  # the same, counted and in one batch shape: the judge of every success
    copies: Copies[Network]  # what is attacked: quicker copies for precision="mixed", else the network itself
    images: TestImages
    threat: Threat
    settings: Settings
    journal: Journal
    device: torch.device
    forecast: Forecast | None = None

    @property
    def x(self) -> Tensor:
        """float32 [n,c,h,w] in [0,1], on the device."""
        return self.images.pixels(self.device)

    @property
    def y(self) -> Tensor:
        return self.images.labels(self.device)

    @cached_property
    def logits(self) -> Tensor:
        """Of the images as they are: [n,classes]."""
        return self.network.all_logits(self.x)

    @cached_property
    def targets(self) -> Tensor:
        """The wrong classes of each image, most likely first: [n,classes-1]."""
        return likely(self.logits, self.y)

    def targets_of(self, step: Step, images: list[int]) -> Tensor:
        """Those of a step that is about to attack these images; the other rows are left as they are."""
        if not step.ranked or not images:
            return self.targets
        found, rows = self.targets[:, : step.ranked].clone(), torch.tensor(images, device=self.device)
        found[rows] = nearest_first(self.network, self.x[rows], self.y[rows], found[rows], self.threat.norm)
        return found

    @cached_property
    def clean(self) -> Tensor:
        """Which images are right before any attack: bool [n], not on the device."""
        return predicted(self.logits).cpu() == self.images.labels()

    @property
    def randomised(self) -> bool:
        return self.settings.version == "rand"

    @cached_property
    def judge(self) -> Network:
        """Who says whether an image is right: of a network that answers at random, the mean of many passes."""
        samples = self.settings.budget.samples
        return Averaged(self.model, self.network.batch, samples) if self.randomised else self.network

    def attacked_by(self, step: Step) -> Network:
        return self.copies.half if step.half else self.copies.full

    def forwards(self) -> int:
        """So far, in F, by this process."""
        return sum({id(n): n.forwards for n in (self.network, *self.copies)}.values())

    def runtime(self) -> dict[str, str]:
        """What else computes the number: a version that rounds otherwise does not go on from this one's progress."""
        answering = self.model if isinstance(self.model, FileNetwork) else self.copies.full.model
        version = answering.version if isinstance(answering, (InOnnxruntime, FileNetwork)) else ""
        return {"onnxruntime": version} if version else {}

    def drop_copies(self) -> None:
        """With what their sessions hold."""
        self.copies = Copies(self.network, self.network)
        freed_memory_returned()


@contextmanager
def opened(model: Answers, images: TestImages, threat: Threat, settings: Settings) -> Iterator[Evaluation]:
    """The network at rest, float32 meaning float32, the images on its device."""
    device = settings.device or device_of(model)
    x = images.pixels(device)
    with at_rest(model), full_precision(), freed_memory_kept():
        require_logits(model, x[:1])
        network = Network(model, settings.batch_size or default_batch(device, model, x[:1]))
        copies = Copies(network, network)
        if settings.precision == "mixed":
            copies = Copies(*(Network(copy, network.batch) for copy in quick_copies(model, x[:2])))
        elif isinstance(model, FileNetwork):
            copies = Copies(*[Network(model.quick, network.batch)] * 2)
        folder = None if settings.progress is None else Path(settings.progress)
        journal = Journal(folder, distributed.process_number(), network.batch)
        yield Evaluation(model, network, copies, images, threat, settings, journal, device)


def forecast(e: Evaluation, steps: list[Step]) -> Forecast | None:
    """For this process, if no image breaks."""
    if e.settings.tell is None or distributed.process_number() > 0:
        return None
    each = sum(work(step, e.network, e.threat).in_forwards for step in steps)
    return Forecast(each * int(e.clean.sum()) / distributed.process_count(), e.settings.tell)


def claim(e: Evaluation, steps: list[Step]) -> None:
    """The progress folder is claimed for exactly this evaluation.

    Of a network that answers at random, the logits become those of the first life and process.
    """
    determines = _determines(e, steps)
    if not e.randomised:
        return e.journal.claim(determines, _measured(e, steps))
    logits = e.logits
    if distributed.process_number() == 0:
        e.journal.claim(determines | {"logits": []}, {})
        logits = e.journal.first_logits(logits)
    e.logits = distributed.of_the_first(logits.cpu()).to(e.device)


def _determines(e: Evaluation, steps: list[Step]) -> dict[str, Any]:
    """The network is told by its weights where it has some, and beyond them by what is measured on it."""
    weights = e.model.state_dict() if isinstance(e.model, nn.Module) else {}
    named = sorted(zip(e.images.ids, e.images.y.tolist()))  # an id is the hash of an image's content
    found = {
        "weights": weights_sha256({name: t for name, t in weights.items() if isinstance(t, Tensor)}),
        "threat": str(e.threat),
        "version": e.settings.version,
        "seed": e.settings.seed,
        "batch_size": e.network.batch,
        "precision": e.settings.precision,
        "images": hashlib.sha256(repr(named).encode()).hexdigest(),
        "steps": [[step.name, step.attempts, step.attack(e.network, e.threat).rounds] for step in steps],
        "budget": asdict(e.settings.budget),
    }
    return found | ({"runtime": e.runtime()} if e.runtime() else {})


def _measured(e: Evaluation, steps: list[Step]) -> dict[str, Tensor]:
    """What tells a network that has no weights, and images whose ids are no hashes: up to rounding."""
    few = sorted(range(len(e.images)), key=e.images.ids.__getitem__)[:8]
    found = {"logits": e.logits[few], "pixels": e.images.pixels().double().sum().view(1)}
    if any(step.gradients for step in steps):  # the same logits may come with other gradients
        found["slopes"] = _slopes(e.network, e.x[few], e.y[few])
    return found


def _slopes(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """Four numbers of each image that tell its gradient's direction: [n,4]."""
    _, _, g = network.gradient(x, lambda z, rows: F.cross_entropy(z, y[rows], reduction="none"))
    unit = F.normalize(g.flatten(1) / g.flatten(1).abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny))
    signs = torch.randint(0, 2, (unit.shape[1], 4), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return unit @ signs.to(unit.device)
