"""A training that is lost: a loss or weights that are no numbers, said with where the last good state lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from autolora.common.errors import DIVERGED

BEYOND = 1e4  # a loss above this never comes back


class Diverged(ValueError):
    """The loss is no number any more, or beyond all bounds."""


def check_weights(weights: Sequence[Tensor], epoch: int, file: Path | None) -> None:
    """What an epoch's last step did is seen by no loss."""
    if not all(torch.isfinite(p).all() for p in weights):
        raise Diverged(f"{DIVERGED}: weights that are no numbers after epoch {epoch}; {last_good(epoch, file)}")


def last_good(epoch: int, file: Path | None) -> str:
    return f"the last good state, after epoch {epoch - 1}, is in {file}" if file and epoch > 1 else "no state was kept"


def check_losses(losses: Tensor, epoch: int, file: Path | None) -> None:
    bad = ~torch.isfinite(losses).all(1) | (losses[:, 0].abs() > BEYOND)
    if bad.any():
        step = int(bad.int().argmax())
        raise Diverged(
            f"{DIVERGED}: the loss is {losses[step, 0].item():g} in epoch {epoch}, step {step + 1}; "
            f"{last_good(epoch, file)}. "
            "Look at the images and the backbone's weights; a baseline may need a lower rate."
        )
