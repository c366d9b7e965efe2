"""The network in training: what objectives ask for (views, attack, means over the global batch), and its state."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from autolora.attacks.pgd import pgd, random_in_ball
from autolora.backbones.fold_batchnorm import Folded, has_bfloat16
from autolora.backbones.frozen import frozen
from autolora.common import distributed
from autolora.common.errors import BadArgument
from autolora.data.batches import augmentation, centre, place, take, to_pixels
from autolora.training.branch import Branch, Statistics, head_parameters, natural_weights
from autolora.training.controllers import Controller, scalars
from autolora.training.objectives import METHODS, REFERENCES, Losses, Method, Reference
from autolora.training.settings import Settings, Split, StoredImages

ATTACK_STEPS = 10
View = Callable[[Tensor], Tensor]


class Learner:
    def __init__(
        self,
        model: nn.Module,
        train: Split,
        val: Split,
        settings: Settings,
        device: torch.device,
        *,
        image_memory: float | None = None,
    ) -> None:
        self.settings, self.device, self.gamma = settings, device, settings.gamma
        self.method: Method = METHODS[settings.method]
        self.reference: Reference = REFERENCES[settings.reference]
        self.objective = (settings.reference == "released" and self.method.released) or self.method.objective
        self.speed = speed(settings, device)
        self.model = copy.deepcopy(model).to(device).requires_grad_(True)
        self.model.to(memory_format=self.speed.layout)  # type: ignore[call-overload]
        self.dtype = next(self.model.parameters()).dtype
        self.head = head_parameters(self.model)
        self._add_parts()
        self.images, self.labels = place(train[0], device, image_memory), train[1].to(device)
        self.val_images, self.val_labels = place(val[0], device, image_memory), val[1].to(device)
        self.size = val[0].shape[-1]
        self.augment = augmentation(settings.augmentation, train[0].shape[-1], self.size)
        self.controller = self._controller()
        self.optimiser = self._optimiser()
        example = self.pixels(take(self.val_images, torch.arange(2) % len(val[1]), device))
        self.folded = Folded(self.model, example)
        self.folded_shipped = self.folded if self.average is None else Folded(self.average.module, example)
        self.attack_view, self.call = self._views()
        self.weights = scalars(0.0)  # of the coming epoch
        self.global_batch = settings.batch_size
        self.noise = torch.Generator(device)
        self.losses = distributed.with_added_gradients(LossModule(self))

    def _add_parts(self) -> None:
        parts, decay = self.method.parts, self.settings.average or self.reference.average
        draw = generator(self.settings.seed, "branch")
        self.branch = Branch(self.reference.layers(self.model), generator=draw) if "branch" in parts else None
        self.norms = Norms(self.model) if "norms" in parts else None
        self.average = None
        if decay is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=following(decay), use_buffers=True)
        for module in self.modules():
            module.to(self.device, self.dtype)

    def _controller(self) -> Controller:
        rate = self.method.rate if self.settings.rate is None else self.settings.rate
        return (self.method.controller or self.reference.controller)(rate, self.settings.epochs)

    def _optimiser(self) -> torch.optim.SGD:
        if self.method.head_only:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in self.head)
        self.trained = [p for m in self.modules() if m is not self.average for p in m.parameters() if p.requires_grad]
        decay = self.method.decay if self.settings.decay is None else self.settings.decay
        return torch.optim.SGD(self.trained, self.controller.rate, momentum=0.9, weight_decay=decay)

    def _views(self) -> tuple[View, Callable[[dict[str, Tensor], Tensor], Tensor]]:
        def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.model, weights, (x,))

        attack: View = self.folded.view
        if self.speed.compile:
            attack, call = torch.compile(attack, dynamic=False), torch.compile(call, dynamic=False)
        return lambda x: self._in(self.speed.attack, attack, x), lambda w, x: self._in(self.speed.train, call, w, x)

    def _in(self, dtype: torch.dtype, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        with self._autocast(dtype):
            return function(*arguments)

    def _autocast(self, dtype: torch.dtype) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype) if dtype == torch.bfloat16 else nullcontext()

    def laid_out(self, x: Tensor) -> Tensor:
        """In the memory format that weights and images share: what follows keeps it."""
        return x.contiguous(memory_format=self.speed.layout)

    def attack(self, x: Tensor, y: Tensor) -> Tensor:
        """PGD-10 on the branch-off network as it is now, in eval; the images themselves where a method knows none."""
        if not self.method.attacked:
            return x
        self.folded.refresh()
        shape = (self.global_batch, *x.shape[1:])
        noise = random_in_ball(x.new_empty(()).expand(shape), self.settings.threat, self.noise)
        noise = self.laid_out(noise[distributed.process_number() :: distributed.process_count()])
        return pgd(self.attack_view, x, y, self.settings.threat, ATTACK_STEPS, noise=noise)

    # what objectives ask for

    def plain(self, x: Tensor) -> Tensor:
        return self.call({}, x)

    def natural(self, x: Tensor) -> Tensor:
        assert self.branch is not None
        return self.call(natural_weights(self.model, self.branch, self.head), x)

    def still(self, x: Tensor) -> Tensor:
        with evaluating(self.model):
            return self.call({}, x)

    def frozen(self, x: Tensor) -> Tensor:
        assert self.norms is not None
        with evaluating(*(m for m in self.model.modules() if isinstance(m, _BatchNorm))):
            return self.call(self.norms.weights(), x)

    def mean(self, values: Tensor) -> Tensor:
        return values.sum() / self.global_batch

    def halves(self, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        half = distributed.part(self.global_batch // 2)
        return [t[:half] for t in tensors], [t[half:] for t in tensors]

    # measuring

    def pixels(self, images: Tensor) -> Tensor:
        """Stored images as the network is given them in evaluation."""
        return self.laid_out(to_pixels(centre(images, self.size)).to(self.dtype))

    def shipped(self) -> nn.Module:
        """The network that would ship now: the last weights, or their average."""
        return self.model if self.average is None else self.average.module

    @torch.no_grad()
    def natural_hits(self) -> Tensor:
        """Which training images the natural branch classifies well, as they are, in eval."""
        assert self.branch is not None
        weights = natural_weights(self.model, self.branch, self.head)
        with evaluating(self.model):
            return self.hits(lambda x: functional_call(self.model, weights, (x,)), self.images, self.labels)

    def clean_hits(self) -> Tensor:
        """Which validation images are classified well; branch off."""
        with frozen(self.shipped()) as model:
            return self.hits(model, self.val_images, self.val_labels)

    def robust_hits(self) -> Tensor:
        """The same after PGD-10 without random start: attacked in the form that training attacks, judged in full."""
        self.folded_shipped.refresh()
        with frozen(self.shipped()) as model:
            attacked = partial(self._in, self.speed.attack, self.folded_shipped.view)
            return self.hits(model, self.val_images, self.val_labels, attacked)

    def hits(self, view: View, images: StoredImages, labels: Tensor, attacked: View | None = None) -> Tensor:
        """bool [n], the same in every process; of images as they are, or as an attack on the `attacked` leaves them."""
        right = torch.zeros(len(labels), device=self.device)
        size = self.settings.batch_size  # what fits in training fits here
        for index in distributed.mine(torch.arange(len(labels))).split(size):
            x, at = self.pixels(take(images, index, self.device)), index.to(self.device)
            if attacked is not None:
                x = pgd(attacked, x, labels[at], self.settings.threat, ATTACK_STEPS, random_start=False)
            with torch.no_grad():
                right[at] = (view(x).argmax(1) == labels[at]).float()
        distributed.add([right])
        return right.bool().cpu()

    # state

    def modules(self) -> list[nn.Module]:
        return [m for m in (self.model, self.branch, self.norms, self.average) if m is not None]

    def state(self) -> dict[str, Any]:
        return {str(i): module.state_dict() for i, module in enumerate(self.modules())}

    def load(self, state: dict[str, Any]) -> None:
        for i, module in enumerate(self.modules()):
            module.load_state_dict(state[str(i)])


class LossModule(nn.Module):
    """An objective's losses as the forward of one module, which torch's DistributedDataParallel can wrap."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.trained = nn.ModuleList(m for m in learner.modules() if m is not learner.average)
        self.learner = learner

    def forward(self, x: Tensor, attacked: Tensor, y: Tensor) -> Losses:
        learner = self.learner
        return learner.objective(learner, x, attacked, y, learner.weights)


class Speed(NamedTuple):
    attack: torch.dtype
    train: torch.dtype
    compile: bool
    layout: torch.memory_format


def speed(settings: Settings, device: torch.device) -> Speed:
    """`auto`: bfloat16 where the processor has it, on a CPU for the attack alone (its sign is what counts); not
    compiled; channels last on every device: a CPU saves a fifth of an epoch by it, tensor cores read convolutions so.
    """
    low, full = torch.bfloat16, torch.float32
    precisions = {"float32": (full, full), "bfloat16": (low, low), "auto": (full, full)}
    if settings.precision == "auto" and has_bfloat16(device):
        precisions["auto"] = (low, low if device.type == "cuda" else full)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return Speed(*precisions[settings.precision], compile=settings.compile not in ("auto", False), layout=layout)


def following(decay: float) -> Callable[..., None]:
    """An exponential average that starts fast, min(decay, (1 + n) / (10 + n)): with few steps an epoch a slow one is
    still the untrained network when the controller judges it.
    """

    @torch.no_grad()
    def follow(averages: list[Tensor], values: list[Tensor], n: Tensor) -> None:
        weight = 1 - torch.clamp((1 + n) / (10 + n), max=decay)  # a tensor: no waiting for the device
        for average, value in zip(averages, values):
            if average.is_floating_point():
                average.lerp_(value, weight.to(average.dtype))
            else:  # a counter of batch norm
                average.copy_(value)

    return follow


class Norms(nn.Module):
    """TWINS' frozen half: the pre-trained running statistics, and an affine copy of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        norms = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
        if not norms:
            raise BadArgument("method", "twins", "the network has no batch norm, which TWINS is made of")
        self.names = [f"{n}.{p}" for n, m in norms for p, _ in m.named_parameters(recurse=False)]
        self.affine = nn.ParameterList([model.get_parameter(n).detach().clone() for n in self.names])
        self.pretrained = Statistics(model)

    def weights(self) -> dict[str, Tensor]:
        return {**dict(zip(self.names, self.affine)), **self.pretrained.values()}


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


def number(seed: int, *what: object) -> int:
    """A seed of its own for each purpose, epoch and step."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *what))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *what: object) -> torch.Generator:
    return torch.Generator().manual_seed(number(seed, *what))
