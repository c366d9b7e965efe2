"""A small robust backbone from scratch: adversarial training (Madry et al., 2018) with averaged weights.

    min_theta  E max_{|d| <= eps} CE(h(x + d; theta), y)     SGD, one-cycle learning rate, exponential average of theta

It makes the backbone that ships, so that the default pipeline needs no download; it is no part of the method.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.attacks.pgd import pgd
from autolora.backbones.classifier import Classifier
from autolora.backbones.frozen import frozen
from autolora.common.files import replacing
from autolora.common.progress import bar
from autolora.data.batches import crop_and_flip, to_pixels
from autolora.threat import Threat

BATCH, PEAK_RATE, WEIGHT_DECAY, AVERAGING = 128, 0.2, 5e-4, 0.998


def pretrain(
    model: Classifier,
    images: Tensor,  # uint8 [n,3,h,w]
    labels: Tensor,
    threat: Threat,
    *,
    epochs: int,
    steps: int = 2,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> Classifier:
    """The averaged network after `epochs`; goes on from `checkpoint` where there is one."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    batches = len(images) // BATCH
    optimiser = torch.optim.SGD(model.parameters(), PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=epochs * batches, pct_start=0.3)
    parts = {"model": model, "average": average, "optimiser": optimiser, "schedule": schedule}
    done = _restore(parts, checkpoint)
    for epoch in range(done, epochs):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator)[: batches * BATCH].view(batches, BATCH)
        right = 0
        shown = bar(len(order), f"pretrain {epoch + 1}/{epochs}", "batch", iterable=order)
        for index in shown:
            x, y = to_pixels(crop_and_flip(images[index], generator)), labels[index]
            with frozen(model):
                attacked = pgd(model, x, y, threat, steps, step=0.6 * threat.eps, generator=generator)
            model.train()
            logits = model(attacked)
            loss = F.cross_entropy(logits, y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            _follow(average, model)
            right += int((logits.argmax(1) == y).sum())
        print(f"epoch {epoch + 1}: accuracy on attacked training images {right / order.numel():.3f}")
        _keep(parts, epoch + 1, checkpoint)
    return average.eval()


@torch.no_grad()
def _follow(average: Classifier, model: Classifier) -> None:
    for mean, value in zip(average.state_dict().values(), model.state_dict().values()):
        if mean.dtype.is_floating_point:
            mean.lerp_(value, 1 - AVERAGING)
        else:
            mean.copy_(value)


def _restore(parts: dict, checkpoint: Path | None) -> int:
    if checkpoint is None or not checkpoint.exists():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["epoch"]


def _keep(parts: dict, epoch: int, checkpoint: Path | None) -> None:
    if checkpoint is not None:
        with replacing(checkpoint) as file:
            torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, file)
