"""The network in training: what objectives ask for (views, attack, means over the global batch), and its state."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from autolora.backbones.fold_batchnorm import Folded
from autolora.backbones.frozen import evaluating
from autolora.common import distributed
from autolora.data.batches import centre, moved, place, take, to_pixels
from autolora.data.mixing import MIXED, Pairs, cutmix, draw_pairs, interpolated
from autolora.training.attack import TrainingAttack, View, whole_epochs
from autolora.training.averaging import following
from autolora.training.branch import Branch, Statistics, head_parameters, natural_weights
from autolora.training.controllers import Controller, PairedRate, between_looks, scalars
from autolora.training.first_rate import feature_power, first_rate, some_of
from autolora.training.low_rank import dense, with_low_rank
from autolora.training.objectives import (
    DECAY,
    METHODS,
    REFERENCES,
    Losses,
    Method,
    Reference,
    chosen_objective,
    cross_entropy,
    divergence,
    wide,
)
from autolora.training.prominence import NATURAL, WEIGHT, Revision, conserved, prominence
from autolora.training.settings import Settings, Split, count_classes
from autolora.training.speed import contiguous_alone, crashes_in_channels_last, speed
from autolora.training.teachers import Balance, Teachers
from autolora.training.twins import Norms
from autolora.training.variety import Variety
from autolora.training.weight_attack import trained_weights, worst_direction


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
        teachers: Teachers | None = None,
    ) -> None:
        self.settings, self.device = settings, device
        self.gamma, self.smoothing = settings.gamma, settings.smoothing
        self.method: Method = METHODS[settings.method]
        self.reference: Reference = REFERENCES[settings.reference]
        self.objective = chosen_objective(settings)
        self.speed = speed(settings, device)
        if crashes_in_channels_last(model, device, settings.trains) or contiguous_alone(model, val[0]):
            self.speed = self.speed._replace(layout=torch.contiguous_format)
        self.model = copy.deepcopy(model).to(device).requires_grad_(True)
        self.model.to(memory_format=self.speed.layout)  # type: ignore[call-overload]
        self.dtype = next(self.model.parameters()).dtype
        self.head = head_parameters(self.model)
        self._add_parts()
        self.images, self.labels = place(train[0], device, image_memory), train[1].to(device)
        self.val_images, self.val_labels = place(val[0], device, image_memory), val[1].to(device)
        self.size = val[0].shape[-1]
        self.variety = Variety(settings, train[0].shape[-1], self.size)
        self.controller = self._controller()
        self.optimiser = self._optimiser()
        example = self.pixels(take(self.val_images, torch.arange(2) % len(val[1]), device))
        self.folded = Folded(self.model, example)
        self.folded_shipped = self.folded if self.average is None else Folded(self.average.module, example)
        self.attack_view, self.call = self._views()
        self.teachers, self.balance = teachers, Balance() if settings.natural_teacher else None
        self.layouts = teachers.place(val[0], device, self.dtype, self.speed.layout) if teachers else {}
        self.first_rate = self.controller.rate
        self.asked: tuple[Tensor, Tensor] | None = None  # the last batch that the teacher saw, and its answers
        self.weights = scalars(0.0)  # of the coming epoch
        self.global_batch = settings.batch_size
        self.classes = count_classes(self.model, self.val_images)
        self.pairs: list[Pairs] = []  # of this step: who is mixed with whom, natural images and attacked ones
        self.attacker = TrainingAttack(settings, device, self.speed.layout)
        self.perturbs, self.seed = False, 0  # weights too, in this epoch; of the step
        self.passes: list[tuple[Tensor, Tensor]] = []  # images and logits of this step, where prominence is asked for
        self.prominence: dict[str, Tensor] = {}  # of this step
        self.bend = torch.zeros((), device=device)  # of the last batch's losses, this process' part
        self.shift: dict[str, Tensor] = {}  # of the weights under attack, in the plain view
        self.scratch: dict[str, Tensor] = {}  # batch-norm statistics that move in place of the network's
        self.losses = distributed.with_added_gradients(LossModule(self))

    def _add_parts(self) -> None:
        parts, decay = self.method.parts, self.settings.average
        draw = generator(self.settings.seed, "branch")
        self.branch = Branch(self.reference.layers(self.model), self.settings.rank, draw) if "branch" in parts else None
        self.norms = Norms(self.model) if "norms" in parts else None
        if self.settings.trains == "lora":
            with_low_rank(self.model, self.reference.layers(self.model), self.head, draw, self.settings.rank)
        self.revision = Revision(self.model) if self.settings.trains == "prominent" else None
        self.average = None
        if decay is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=following(decay), use_buffers=True)
        for module in self.modules():
            module.to(self.device, self.dtype)

    def _first_rate(self) -> float:
        if self.settings.rate is not None:
            return self.settings.rate
        if not self.reference.finds_rate:
            return self.method.rate
        some = some_of(len(self.labels)).split(self.settings.batch_size)
        batches = (self.pixels(take(self.images, index, self.device)) for index in some)
        return first_rate(feature_power(self.model, batches))

    def _controller(self) -> Controller:
        own = None if self.reference.for_all else self.method.controller
        controller = (own or self.reference.controller)(self._first_rate(), self.settings.epochs)
        if isinstance(controller, PairedRate):
            controller.most = self.settings.trains in ("head", "blocks") and not self.settings.blocks
            if self.settings.attack != "pgd":
                controller.every = between_looks(len(self.labels), len(self.val_labels), whole_epochs(self.settings))
        return controller

    def _optimiser(self) -> torch.optim.SGD:
        if self.method.head_only or self.settings.trains in ("head", "blocks"):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in self.head or self._in_blocks(name))
        self.trained = [p for m in self.modules() if m is not self.average for p in m.parameters() if p.requires_grad]
        found = self.reference.finds_rate and self.settings.rate is None
        own = DECAY if found else self.method.decay  # which goes with the method's own rate
        decay = own if self.settings.decay is None else self.settings.decay
        return torch.optim.SGD(self.trained, self.controller.rate, momentum=0.9, weight_decay=decay)

    def _in_blocks(self, name: str) -> bool:
        return name.startswith(tuple(f"{block}." for block in self.settings.blocks or ()))

    def _views(self) -> tuple[View, Callable[[dict[str, Tensor], Tensor], Tensor]]:
        def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.model, weights, (x,))

        attack: View = self.folded.view
        if self.speed.compile:
            last = self.speed.layout == torch.channels_last  # said, since it would choose for itself
            attack, call = (
                torch.compile(f, dynamic=False, options={"layout_optimization": last}) for f in (attack, call)
            )
        return (
            lambda x: self.in_precision(self.speed.attack, attack, x),
            lambda w, x: self.in_precision(self.speed.train, call, w, x),
        )

    def in_precision(self, dtype: torch.dtype, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        with self._autocast(dtype):
            return function(*arguments)

    def _autocast(self, dtype: torch.dtype) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype) if dtype == torch.bfloat16 else nullcontext()

    def laid_out(self, x: Tensor) -> Tensor:
        """In the memory format that weights and images share: what follows keeps it."""
        return x.contiguous(memory_format=self.speed.layout)

    def attack(self, x: Tensor, y: Tensor) -> Tensor:
        """On the branch-off network as it is now, in eval; the images themselves where a method knows no attack."""
        if not self.method.attacked:
            return x
        self.folded.refresh()
        return self.attacker(self.attack_view, x, self.attacked_labels(x, y))

    def attacked_labels(self, x: Tensor, y: Tensor) -> Tensor:
        """Of one teacher alone its answers: the slope of the cross-entropy is then that of KL(T(x) || h(x~))."""
        if self.teachers is None or self.balance is not None:
            return y
        return F.softmax(wide(self.teacher(x)), 1)

    def train(self) -> None:
        """Training mode. A body of which only some blocks learn, or none, rests: its statistics stay as they are."""
        self.model.train()
        if self.settings.trains in ("head", "blocks"):
            for name, module in self.model.named_modules():
                module.training = self._in_blocks(f"{name}.")

    def begin(self, seed: int, batch: int) -> None:
        """A step on a global batch of so many images."""
        self.global_batch, self.seed = batch, seed
        self.attacker.begin(seed, batch)
        if self.settings.augmentation in MIXED:
            draw = generator(seed, "mix")
            self.pairs = [draw_pairs(batch, draw) for _ in range(2)]

    def cutmix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._mixed(cutmix, x, y, self.pairs[0])

    def _mixed(self, how: Callable[..., tuple[Tensor, Tensor]], x: Tensor, y: Tensor, pairs: Pairs) -> Any:
        """Partners may be another process' images."""
        labels = F.one_hot(y, self.classes).to(torch.promote_types(x.dtype, torch.float32))
        mine = moved(distributed.mine(pairs.partners), x.device)
        others, theirs = (distributed.all_rows(t, self.global_batch)[mine] for t in (x, labels))
        mixed, soft = how(x, labels, others, theirs, pairs)
        return self.laid_out(mixed), soft

    def perturb_weights(self, x: Tensor, attacked: Tensor, y: Tensor) -> None:
        """From here on the plain view has the weights that raise this batch's loss most."""
        gamma, layers = self.settings.weight_attack, trained_weights(self.model)
        assert gamma is not None
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.shift, self.scratch = {}, Statistics(self.model).values()
            total = self.objective(self, x, attacked, y, self.weights).total
        self.shift, self.scratch = worst_direction(total, layers, gamma), {}

    def step(self) -> None:
        """Of the optimiser; where only prominent weights are trained, of these."""
        if self.revision is None:
            self.optimiser.step()
            return
        with conserved(self._prominent(), self.prominence):
            self.optimiser.step()
        self.revision.follow(self.model, generator(self.seed, "revision"))

    def _prominent(self) -> dict[str, Tensor]:
        """The weights that prominence is asked of."""
        return {name: weight for name, weight in trained_weights(self.model).items() if name not in self.head}

    def revised(self, attacked: Tensor, y: Tensor) -> Tensor:
        """Of the passes just made: how far they are from the revision's. Finds which weights are prominent, too."""
        assert self.revision is not None
        shares = [1 - NATURAL if x is attacked else NATURAL for x, _ in self.passes]
        losses = [(share, cross_entropy(self, z, y)) for share, (_, z) in zip(shares, self.passes)]
        self.prominence = prominence(losses, self._prominent())
        with torch.no_grad(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            weights = self.revision.weights() | Statistics(self.model).values()
            before = [self.call(weights, x) for x, _ in self.passes]
        return torch.stack([divergence(self, old, z) for old, (_, z) in zip(before, self.passes)]).sum()

    # what objectives ask for

    def plain(self, x: Tensor) -> Tensor:
        z = self.call(self._shifted() | self.scratch, x)
        if self.revision is not None:
            self.passes.append((x, z))
        return z

    def natural(self, x: Tensor) -> Tensor:
        assert self.branch is not None
        return self.call(natural_weights(self.model, self.branch, self.head) | self.scratch, x)

    def still(self, x: Tensor) -> Tensor:
        with evaluating(self.model):
            return self.call({}, x)

    def frozen(self, x: Tensor) -> Tensor:
        assert self.norms is not None
        with evaluating(*(m for m in self.model.modules() if isinstance(m, _BatchNorm))):
            return self.call(self._shifted() | self.norms.weights(), x)

    def _shifted(self) -> dict[str, Tensor]:
        """Weights of layers as the attack on them has left them."""
        return {name: self.model.get_parameter(name) + v for name, v in self.shift.items()}

    def teacher(self, x: Tensor) -> Tensor:
        """The attack and the loss ask for the same batch."""
        assert self.teachers is not None
        if self.asked is None or self.asked[0] is not x:
            self.asked = x, self._taught(self.teachers.robust, x)
        return self.asked[1]

    def natural_teacher(self, x: Tensor) -> Tensor:
        assert self.teachers is not None
        assert self.teachers.natural is not None
        return self._taught(self.teachers.natural, x)

    @torch.no_grad()
    def _taught(self, network: nn.Module, x: Tensor) -> Tensor:
        return self.in_precision(self.speed.train, network, x.contiguous(memory_format=self.layouts[network]))

    def balance_of_teachers(self) -> float:
        assert self.balance is not None
        return self.balance.natural

    def mean(self, values: Tensor) -> Tensor:
        return values.sum() / self.global_batch

    def interpolated(self, x: Tensor, y: Tensor, which: int) -> tuple[Tensor, Tensor]:
        return self._mixed(interpolated, x, y, self.pairs[which])

    def halves(self, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        half = distributed.part(self.global_batch // 2)
        return [t[:half] for t in tensors], [t[half:] for t in tensors]

    # what is measured

    def pixels(self, images: Tensor) -> Tensor:
        """Stored images as the network is given them in evaluation."""
        return self.laid_out(to_pixels(centre(images, self.size)).to(self.dtype))

    def shipped(self) -> nn.Module:
        """The network that would ship now: the last weights, or their average."""
        return self.model if self.average is None else self.average.module

    def finished(self) -> nn.Module:
        """The same in its usual form, at rest."""
        return dense(self.shipped()).eval().requires_grad_(False)

    # state

    def modules(self) -> list[nn.Module]:
        return [m for m in (self.model, self.branch, self.norms, self.average, self.revision) if m is not None]

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
        learner, straight = self.learner, self.learner.attacker.straight
        learner.passes = []
        losses = learner.objective(learner, x, attacked, y, learner.weights)
        if learner.revision is not None:
            losses = losses._replace(total=losses.total + WEIGHT * learner.revised(attacked, y))
        if straight is None or not learner.attacker.straightens:
            return losses
        bend = learner.mean(learner.attacker.bend(learner.still, x, learner.attacked_labels(x, y)))
        learner.bend = bend.detach().clone()
        return losses._replace(total=losses.total + straight.weight * bend)


def number(seed: int, *what: object) -> int:
    """A seed of its own for each purpose, epoch and step."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *what))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *what: object) -> torch.Generator:
    return torch.Generator().manual_seed(number(seed, *what))
