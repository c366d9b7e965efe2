"""RiFT (Zhu et al., 2023): the layer that robustness depends on least, tuned naturally; the dial says how far.

    MRC_i = max over ‖D_i‖ <= 0.1 ‖theta_i‖ of  CE(theta + D_i; x~) - CE(theta; x~)      x~ attacked once, at theta
    i*    = argmin MRC_i;   theta_FT = theta, with the weight of layer i* tuned on natural images

x~ are training images. The released code measures, and chooses, on the test part. The ascent divides each gradient by
its length, so neither a rate nor the layer's scale matters: theta_i times 3 before a batch norm changes nothing.
Everything is in eval: one tensor moves, and no running statistic.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from autolora.attacks.pgd import pgd
from autolora.backbones.frozen import frozen
from autolora.backbones.layers import weight_layers
from autolora.common.files import read_json, replacing, write_json
from autolora.data.batches import augmentation, centre, stream, take, to_pixels
from autolora.threat import Threat
from autolora.training.learner import generator
from autolora.training.settings import Split

IMAGES = 512  # training images on which criticality is measured, evenly from the classes
ATTACK_STEPS = 10
RADIUS = 0.1  # of the ball, in lengths of the layer's weight
ASCENT, STRIDE = 10, 0.25  # steps, and their length in radii
BATCH = 128
RATE, DECAY = 1e-3, 5e-4  # of the tuning; a tenth of the rate in its second half
EPOCHS, LEAST_STEPS = 10, 1000  # whichever is longer: an epoch of a small set has a dozen steps


class Critical(NamedTuple):
    network: nn.Module  # theta_FT
    layer: str
    found: dict[str, float]  # MRC of each layer


def critical(
    model: nn.Module,
    train: Split,
    threat: Threat,
    *,
    size: int,
    seed: int = 0,
    augmented: str = "auto",
    folder: Path | None = None,
) -> Critical:
    """The least critical layer of a robust network and the network with that layer tuned; goes on from `folder`.

    `size`: pixels a side as the network is given them; stored images may be larger.
    """
    device = next(model.parameters()).device
    index = evenly(train[1], IMAGES, generator(seed, "criticality"))
    x, y = to_pixels(centre(take(train[0], index, device), size)), train[1][index].to(device)
    found = measured(model, (x, y), threat, folder)
    layer = min(found, key=found.__getitem__)  # ties: the earlier one
    tuning = Tuning(layer, size, seed, augmented)
    return Critical(tune(model, train, tuning, folder), layer, found)


def evenly(labels: Tensor, n: int, draw: torch.Generator) -> Tensor:
    """n of the images, or all: classes take turns, each in an order that is drawn."""
    order = torch.randperm(len(labels), generator=draw)
    turns, seen = [0] * len(labels), dict[int, int]()
    for i in order.tolist():
        label = int(labels[i])
        turns[i] = seen[label] = seen.get(label, 0) + 1
    return torch.tensor(sorted(order.tolist(), key=turns.__getitem__)[:n])  # sorted keeps the drawn order in a turn


# --- criticality ------------------------------------------------------------------------------------------------------


def measured(
    model: nn.Module, images: tuple[Tensor, Tensor], threat: Threat, folder: Path | None = None
) -> dict[str, float]:
    """MRC of each layer, in module order. Each is kept as soon as it is known."""
    kept = folder / "criticality.json" if folder else None
    found: dict[str, float] = read_json(kept) if kept and kept.exists() else {}
    layers = [name for name, layer in weight_layers(model) if layer.weight.any()]  # a weight of zeros has no ball
    if left := [name for name in layers if name not in found]:
        x, y = attacked(model, *images, threat), images[1]
        for name in left:
            found[name] = worst_change(model, name, x, y)[1]
            if kept:
                write_json(kept, found)
    return {name: found[name] for name in layers}


def attacked(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    with frozen(model):
        parts = zip(x.split(BATCH), y.split(BATCH))
        return torch.cat([pgd(model, a, b, threat, ATTACK_STEPS, random_start=False) for a, b in parts])


def worst_change(model: nn.Module, layer: str, x: Tensor, y: Tensor, radius: float = RADIUS) -> tuple[Tensor, float]:
    """The change of a layer's weight, within the ball, that raises the loss most of those that the ascent met; and by
    how much."""
    name = f"{layer}.weight"
    weight = model.get_parameter(name).detach()
    most = radius * weight.norm()
    change = torch.zeros_like(weight)
    with frozen(model):
        start, gradient = _loss_and_gradient(model, name, weight, x, y)
        worst, largest = change, start
        for _ in range(ASCENT):
            change = change + STRIDE * most * gradient / gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            change = change * (most / change.norm().clamp_min(torch.finfo(gradient.dtype).tiny)).clamp(max=1)
            loss, gradient = _loss_and_gradient(model, name, weight + change, x, y)
            if loss > largest:
                worst, largest = change, loss
    return worst, largest - start


def _loss_and_gradient(model: nn.Module, name: str, weight: Tensor, x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """Mean cross-entropy with this weight in the layer's place, and its gradient there alone."""
    weight = weight.detach().requires_grad_(True)
    total, gradient = 0.0, torch.zeros_like(weight)
    for images, labels in zip(x.split(BATCH), y.split(BATCH)):
        loss = F.cross_entropy(functional_call(model, {name: weight}, (images,)), labels, reduction="sum") / len(y)
        total += loss.item()
        gradient += torch.autograd.grad(loss, weight)[0]
    return total, gradient


# --- tuning -----------------------------------------------------------------------------------------------------------


class Tuning(NamedTuple):
    layer: str
    size: int
    seed: int
    augmented: str


def tune(model: nn.Module, train: Split, tuning: Tuning, folder: Path | None = None) -> nn.Module:
    """A copy whose layer learned the natural images. The last state counts: nothing is chosen before the dial."""
    tuned = copy.deepcopy(model).eval().requires_grad_(False)
    weight = tuned.get_parameter(f"{tuning.layer}.weight").requires_grad_(True)
    optimiser = torch.optim.SGD([weight], RATE, momentum=0.9, weight_decay=DECAY)
    steps = -(-len(train[1]) // BATCH)
    epochs = max(EPOCHS, -(-LEAST_STEPS // steps))
    kept = folder / "tuning.pt" if folder else None
    for epoch in range(_restored(kept, weight, optimiser) + 1, epochs + 1):
        for group in optimiser.param_groups:
            group["lr"] = RATE if 2 * epoch <= epochs else RATE / 10
        for x, y in _batches(train, tuning, epoch, weight.device):
            optimiser.zero_grad()
            F.cross_entropy(tuned(x), y).backward()
            optimiser.step()
        if kept:
            with replacing(kept) as part:
                torch.save({"epoch": epoch, "weight": weight.detach(), "optimiser": optimiser.state_dict()}, part)
    return tuned.requires_grad_(False)


def _restored(kept: Path | None, weight: Tensor, optimiser: torch.optim.SGD) -> int:
    """The epochs that are over."""
    if kept is None or not kept.exists():
        return 0
    saved = torch.load(kept, map_location=weight.device, weights_only=True)
    with torch.no_grad():
        weight.copy_(saved["weight"])
    optimiser.load_state_dict(saved["optimiser"])
    return saved["epoch"]


def _batches(train: Split, tuning: Tuning, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """As in fine-tuning: each draw depends on (seed, epoch, step)."""
    images, labels = train
    augment = augmentation(tuning.augmented, images.shape[-1], tuning.size)
    order = torch.randperm(len(labels), generator=generator(tuning.seed, "critical order", epoch)).split(BATCH)
    for step, stored in enumerate(stream(images, order, device)):
        draws = augment.draw(len(order[step]), generator(tuning.seed, "critical augment", epoch, step))
        yield to_pixels(augment.apply(stored, draws)), labels[order[step]].to(device)
