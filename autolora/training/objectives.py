"""One small function per method, and the table of methods. A further one is one function and one line in METHODS.

An objective gets the network in training, a batch (images, the same under attack, labels) and the loss weights, and
returns its `Losses`. Means are taken over the global batch (`net.mean`), so that several processes add up to what one
would compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autolora.training.branch import Layers, all_layers, last_blocks
from autolora.training.controllers import (
    AutoRate,
    Controller,
    PairedRate,
    Scalars,
    SlowStart,
    StepRate,
    stalled_as_published,
    stalled_as_released,
)

DECAY = 1e-4  # of all weights
BETA = 6.0  # the weight of the KL term in TRADES and TWINS
MART_BETA = 5.0
AROW_LAMBDA = 7.0  # [code]: twice the text's 3.5
RSLAD_ADVERSARIAL = 5 / 6


class Losses(NamedTuple):
    total: Tensor
    natural: Tensor
    adversarial: Tensor
    kl: Tensor
    accuracy: Tensor  # on the natural images of the batch, in this very pass


Objective = Callable[["Network", Tensor, Tensor, Tensor, Scalars], Losses]  # images, under attack, labels


class Network(Protocol):
    """What an objective may ask of the network in training."""

    gamma: float  # TWINS' weight of the frozen half
    smoothing: float  # of the labels in every cross-entropy that is trained on

    def plain(self, x: Tensor) -> Tensor: ...  # h(x; theta1, theta2): branch off

    def natural(self, x: Tensor) -> Tensor: ...  # h(x; sg(theta1) + BA, theta2): branch on

    def still(self, x: Tensor) -> Tensor: ...  # branch off, in eval: batch-norm statistics are used and not moved

    def frozen(self, x: Tensor) -> Tensor: ...  # TWINS: pre-trained batch-norm statistics, own affine copy

    def teacher(self, x: Tensor) -> Tensor: ...  # the robust one's logits, in eval, constant

    def natural_teacher(self, x: Tensor) -> Tensor: ...

    def balance_of_teachers(self) -> float: ...  # the natural one's share

    def mean(self, values: Tensor) -> Tensor: ...  # this process' part of the mean over the global batch

    def interpolated(self, x: Tensor, y: Tensor, which: int) -> tuple[Tensor, Tensor]: ...  # with the step's partners

    def halves(self, *tensors: Tensor) -> tuple[list[Tensor], list[Tensor]]: ...


def cross_entropy(net: Network, z: Tensor, y: Tensor) -> Tensor:
    return net.mean(F.cross_entropy(wide(z), y, reduction="none", label_smoothing=net.smoothing))


def wide(z: Tensor) -> Tensor:
    """At least float32: softmax and logarithm are never taken in half precision."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


def accuracy(net: Network, z: Tensor, y: Tensor) -> Tensor:
    """Of a mixed label the larger part counts."""
    return net.mean((z.detach().argmax(1) == (y if y.ndim == 1 else y.argmax(1))).float())


def divergence(net: Network, z: Tensor, z_adv: Tensor) -> Tensor:
    """KL(softmax z || softmax z~), batch mean; the soft label from z is not detached."""
    return net.mean(divergences(z, z_adv))


def divergences(z: Tensor, z_adv: Tensor) -> Tensor:
    """The same of each image."""
    log_p, log_q = F.log_softmax(wide(z), 1), F.log_softmax(wide(z_adv), 1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def of_label(z: Tensor, y: Tensor) -> Tensor:
    """softmax(z)[y] of each image."""
    return F.softmax(wide(z), 1).gather(1, y[:, None])[:, 0]


def autolora(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """lam1 * CE(z, y) + (1 - lam1) * CE(z~, y) + lam2 * KL(p || q): natural pass first, branch on; then adversarial."""
    z = net.natural(x)
    z_adv = net.plain(attacked)
    natural, adversarial = cross_entropy(net, z, y), cross_entropy(net, z_adv, y)
    kl = divergence(net, z, z_adv)
    total = weights.lambda1 * natural + (1 - weights.lambda1) * adversarial + weights.lambda2 * kl
    return Losses(total, natural, adversarial, kl, accuracy(net, z, y))


def vanilla(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """TRADES (Zhang et al., 2019): CE(h(x), y) + 6 * KL(softmax h(x) || softmax h(x~))."""
    z = net.plain(x)
    z_adv = net.plain(attacked)
    natural, kl = cross_entropy(net, z, y), divergence(net, z, z_adv)
    return Losses(natural + BETA * kl, natural, cross_entropy(net, z_adv, y).detach(), kl, accuracy(net, z, y))


def twins(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """TWINS (Liu et al., 2023): g*CE(nat_f) + CE(nat_a) + 6*[g*KL(nat_f||adv_f) + KL(nat_a||adv_a)], half a batch
    through each of the two batch-norm modes, frozen and adaptive."""
    return _twins(net, x, attacked, y, BETA)


def twins_released(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """[released code] each KL sum over a half is divided by the full batch size: 3 per image, not 6."""
    return _twins(net, x, attacked, y, BETA / 2)


def _twins(net: Network, x: Tensor, attacked: Tensor, y: Tensor, beta: float) -> Losses:
    """The attack was made on the adaptive net."""
    (x_f, adv_f, y_f), (x_a, adv_a, y_a) = net.halves(x, attacked, y)
    z_adv_f, z_adv_a = net.frozen(adv_f), net.plain(adv_a)  # the adversarial pass comes first
    z_f, z_a = net.frozen(x_f), net.plain(x_a)
    # net.mean divides by the whole batch: twice that is the mean over a half
    natural = 2 * (net.gamma * cross_entropy(net, z_f, y_f) + cross_entropy(net, z_a, y_a))
    kl = 2 * (net.gamma * divergence(net, z_f, z_adv_f) + divergence(net, z_a, z_adv_a))
    return Losses(
        natural + beta * kl, natural, 2 * cross_entropy(net, z_adv_a, y_a).detach(), kl, 2 * accuracy(net, z_a, y_a)
    )


def madry(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """Adversarial training (Madry et al., 2018): CE(h(x~), y). The natural images take no part."""
    z_adv = net.plain(attacked)
    loss = cross_entropy(net, z_adv, y)
    return Losses(loss, loss.new_zeros(()), loss.detach(), loss.new_zeros(()), accuracy(net, z_adv, y))


def mart(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """MART (Wang et al., 2020): -log p~[y] - log(1 - max_{k != y} p~[k]) + 5 * mean[KL(p || p~) * (1 - p[y])].

    The small constants are the released code's, and its weight 1 - p[y] is not detached.
    """
    z, z_adv = net.plain(x), net.plain(attacked)
    p_adv = F.softmax(wide(z_adv), 1)
    others = p_adv.scatter(1, y[:, None], 0.0).amax(1)
    margin = net.mean(-torch.log(1.0001 - others + 1e-12))
    kl = net.mean(divergences(z, z_adv) * (1.0000001 - of_label(z, y)))
    adversarial = cross_entropy(net, z_adv, y) + margin
    natural = cross_entropy(net, z, y).detach()
    return Losses(adversarial + MART_BETA * kl, natural, adversarial.detach(), kl, accuracy(net, z, y))


def arow(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """ARoW (Yang et al., 2023): CE(z, y) + 7 * mean[KL(p || p~) * (1 - p~[y])]: more weight where x~ is less sure."""
    z, z_adv = net.plain(x), net.plain(attacked)
    natural = cross_entropy(net, z, y)
    kl = net.mean(divergences(z, z_adv) * (1 - of_label(z_adv, y)))
    adversarial = cross_entropy(net, z_adv, y).detach()
    return Losses(natural + AROW_LAMBDA * kl, natural, adversarial, kl, accuracy(net, z, y))


def distill(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """RSLAD (Zi et al., 2021): 5/6 KL(T(x) || h(x~)) + 1/6 KL(T(x) || h(x)). No label takes part."""
    taught = net.teacher(x)
    z, z_adv = net.plain(x), net.plain(attacked)
    natural, adversarial = divergence(net, taught, z), divergence(net, taught, z_adv)
    total = RSLAD_ADVERSARIAL * adversarial + (1 - RSLAD_ADVERSARIAL) * natural
    return Losses(total, natural, adversarial, natural.new_zeros(()), accuracy(net, z, y))


def distill_from_two(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """MTARD (Zhao et al., 2022): (1 - w) KL(T(x~) || h(x~)) + w KL(N(x) || h(x)), w by `teachers.Balance`."""
    z, z_adv = net.plain(x), net.plain(attacked)
    natural = divergence(net, net.natural_teacher(x), z)
    adversarial = divergence(net, net.teacher(attacked), z_adv)
    share = net.balance_of_teachers()
    total = (1 - share) * adversarial + share * natural
    return Losses(total, natural, adversarial, natural.new_zeros(()), accuracy(net, z, y))


def natural(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """Fine-tuning without an attack: the accuracy that is to be had where robustness is not asked for."""
    z = net.plain(x)
    loss = cross_entropy(net, z, y)
    return Losses(loss, loss.detach(), loss.new_zeros(()), loss.new_zeros(()), accuracy(net, z, y))


def linear(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """The head alone, on features that stay as pre-trained (batch-norm statistics too)."""
    z = net.still(x)
    loss = cross_entropy(net, z, y)
    return Losses(loss, loss.detach(), loss.new_zeros(()), loss.new_zeros(()), accuracy(net, z, y))


# --- of images that are interpolated with others ---------------------------------------------------------------------


def iat(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
    """IAT (Lamb et al., 2019): [CE(h(mix x), mix y) + CE(h(mix' x~), mix' y)] / 2, each with its own partners."""
    (mixed, label), (mixed_adv, label_adv) = net.interpolated(x, y, 0), net.interpolated(attacked, y, 1)
    z, z_adv = net.plain(mixed), net.plain(mixed_adv)
    natural, adversarial = cross_entropy(net, z, label), cross_entropy(net, z_adv, label_adv)
    return Losses((natural + adversarial) / 2, natural, adversarial, natural.new_zeros(()), accuracy(net, z, label))


def mixup(objective: Objective) -> Objective:
    """The same on natural images that are interpolated (Zhang et al., 2018)."""

    def on_mixed(net: Network, x: Tensor, attacked: Tensor, y: Tensor, weights: Scalars) -> Losses:
        x, y = net.interpolated(x, y, 0)
        return objective(net, x, attacked, y, weights)

    return on_mixed


@dataclass(frozen=True)
class Reference:
    """Where the paper and the released code disagree; a further controller is one line in REFERENCES."""

    layers: Callable[[nn.Module], Layers]  # that get a branch
    controller: Callable[[float, int], Controller]  # of the learning rate: (first rate, epochs)
    for_all: bool = False  # `controller` is every method's, in place of its own
    finds_rate: bool = False  # it starts from a rate that the features give


REFERENCES: dict[str, Reference] = {
    "paper": Reference(all_layers, lambda rate, epochs: AutoRate(rate, epochs, stalled_as_published)),
    "released": Reference(last_blocks, lambda rate, epochs: AutoRate(rate, epochs, stalled_as_released)),
    "best": Reference(all_layers, PairedRate, for_all=True, finds_rate=True),
    "slow_start": Reference(all_layers, SlowStart, for_all=True),
}


@dataclass(frozen=True)
class Method:
    objective: Objective
    rate: float  # the first learning rate
    decay: float = DECAY
    released: Objective | None = None  # where the released code computes another loss
    two_teachers: Objective | None = None  # its form with a natural teacher too
    interpolated: Objective | None = None  # its form with `augmentation: interpolate`; None: there is none
    controller: Callable[[float, int], Controller] | None = StepRate  # None: the reference's own
    parts: tuple[str, ...] = ()  # what is trained beside the network: "branch", "norms"
    attacked: bool = True  # trained on attacked images and selected by validation RA; else neither, and validation SA
    head_only: bool = False


METHODS: dict[str, Method] = {
    "autolora": Method(autolora, 0.01, controller=None, parts=("branch",)),
    "vanilla": Method(vanilla, 0.003),
    "twins": Method(twins, 0.003, released=twins_released, parts=("norms",)),
    "madry": Method(madry, 0.01, controller=None, interpolated=iat),
    "mart": Method(mart, 0.01, controller=None),
    "arow": Method(arow, 0.01, controller=None),
    # [code] a rate of 0.1 and a decay of 2e-4 on the mean over ten classes too, which is a tenth of the divergence
    "distill": Method(distill, 0.01, decay=2e-3, controller=None, two_teachers=distill_from_two),
    "natural": Method(natural, 0.01, attacked=False, interpolated=mixup(natural)),
    "linear": Method(linear, 0.01, attacked=False, head_only=True, interpolated=mixup(linear)),
}


class Form(Protocol):
    """Of a run's settings, what its loss depends on."""

    @property
    def method(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def augmentation(self) -> str: ...
    @property
    def natural_teacher(self) -> str | None: ...


def chosen_objective(form: Form) -> Objective:
    """axes.clashes has refused what has no form."""
    method = METHODS[form.method]
    if form.augmentation == "interpolate":
        assert method.interpolated is not None
        return method.interpolated
    if form.natural_teacher is not None:
        assert method.two_teachers is not None
        return method.two_teachers
    return (form.reference == "released" and method.released) or method.objective
