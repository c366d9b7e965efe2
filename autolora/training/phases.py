"""Runs that a run needs before itself: what each of them is, and which blocks short ones choose.

They are runs like others: each has its own checkpoints, so that a killed one trains nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from autolora.training import subtuning
from autolora.training.resume import Record, alone
from autolora.training.settings import Settings

OF_THE_TWIN = ["epochs", "seed", "reference", "batch_size", "augmentation", "average"]
OF_THE_TWIN += ["precision", "compile", "channels_last"]


def robust_head(settings: Settings) -> Settings:
    """RoLI (Hua et al., 2024): first the head on attacked images, the body as pre-trained and in eval; then the method.

    A linear probe is safe to train on one gradient an image, whatever the rest is trained on. It finds its own rate.
    """
    attack = "auto" if settings.threat.norm == "linf" else "pgd"
    return replace(
        settings, method="madry", trains="head", attack=attack, reference="best", rate=None, decay=None,
        epochs=max(1, settings.epochs // 2), eps_schedule="constant", weight_attack=None, average=None, blocks=None,
        teacher=None, natural_teacher=None,
    )  # fmt: skip


def first_pass(settings: Settings) -> Settings:
    """The teacher that a run makes itself: AutoLoRa under the same axes, all weights trained."""
    return replace(
        settings,
        method="autolora",
        trains="all",
        blocks=None,
        teacher=None,
        natural_teacher=None,
        rate=None,
        decay=None,
    )


def twin(settings: Settings) -> Settings:
    """The natural twin, as whoever compares with it trains it: no axis of the robust run is its own."""
    own = {key: getattr(settings, key) for key in OF_THE_TWIN}
    return Settings(settings.threat, "natural", eps_schedule="constant", **own)


def best_blocks(
    run_shortly: Callable[[Settings], list[bool]], model: nn.Module, settings: Settings, file: Path | None
) -> tuple[tuple[str, ...], list[Record]]:
    """SubTuning: short runs from the same start say which blocks to train. What they found is kept beside `file`."""
    tries = subtuning.Tries()

    def tried(blocks: tuple[str, ...]) -> list[bool]:
        return run_shortly(replace(settings, blocks=blocks, epochs=subtuning.short_epochs(settings.epochs)))

    with alone(file):
        kept = None if file is None else file.with_suffix(".blocks.json")
        chosen = subtuning.choose(subtuning.blocks_of(model), subtuning.remembered(tried, kept, tries))
    return chosen, subtuning.as_records(tries)
