"""What network, images and processes do not allow: said before the first phase, and not when a run comes to it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from autolora.backbones.layers import head_names
from autolora.common import distributed
from autolora.common.errors import BadArgument
from autolora.training import subtuning
from autolora.training.axes import FIRST_PASS
from autolora.training.branch import check_layers, head_parameters
from autolora.training.low_rank import check_low_rank
from autolora.training.objectives import METHODS, REFERENCES
from autolora.training.settings import Settings
from autolora.training.twins import check_norms
from autolora.training.weight_attack import computed_layers, weights_of_layers


def check_possible(model: nn.Module, settings: Settings, images: int) -> None:
    """`settings` are decided. A phase before the last one has fewer needs than this."""
    layers = REFERENCES[settings.reference].layers(model)
    if settings.method == "autolora" or settings.teacher == FIRST_PASS:
        check_layers(layers)
    if settings.method == "twins":
        check_norms(model)
    if settings.trains == "lora":
        check_low_rank(layers)
    if settings.weight_attack is not None:
        check_plain("weight_attack", settings.weight_attack, computed_layers(model))
    if settings.trains == "prominent":
        check_plain("trains", "prominent", set(computed_layers(model)) - set(head_names(model)))
        if not weights_of_layers(model).keys() - head_parameters(model):
            raise BadArgument("trains", "prominent", "the network has no convolution or linear layer but its head")
    if settings.trains == "blocks":
        subtuning.check_blocks(model, settings.blocks or ())
    if not batches(settings, torch.arange(images)):
        raise ValueError(
            f"no batch to train on: {images} images in batches of {settings.batch_size} for "
            f"{distributed.process_count()} process(es), of which each needs at least two images (twins: four in all)"
        )


def check_plain(axis: str, value: object, computed: Collection[str]) -> None:
    """These layers would be left out without a word."""
    if computed:
        cure = "make it a plain one first, by torch.nn.utils.parametrize.remove_parametrizations for instance"
        raise BadArgument(axis, value, f"the weight of layer {min(computed)!r} is computed from others: {cure}")


def batches(settings: Settings, order: Tensor) -> list[Tensor]:
    """Of an epoch, over all processes. What is left over at its end may be too little for batch norm."""
    halves = 2 if "norms" in METHODS[settings.method].parts else 1  # TWINS cuts a batch in two
    least = max(2 * distributed.process_count(), 2 * halves)
    return [batch for batch in order.split(settings.batch_size) if len(batch) >= least]
