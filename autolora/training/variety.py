"""How training images are varied: as asked; with `auto`, harder from where a network learns them by heart.

    right on training images - right on validation images > 0.25      ->      IDBH, from the next epoch on

What a network knows by heart teaches it nothing, and robust accuracy falls while it learns on (Rice et al., 2020).
Where training stays close to validation, IDBH costs clean accuracy (docs/log, page 64).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autolora.data.batches import Augmentation, augmentation
from autolora.training.objectives import METHODS, REFERENCES
from autolora.training.settings import Settings

APART = 0.25  # accuracy on natural images, in training less in validation
HARDER = "idbh"


class Variety:
    def __init__(self, settings: Settings, stored: int, size: int) -> None:
        self.sides, self.name = (stored, size), settings.augmentation
        robust = METHODS[settings.method].attacked and settings.trains != "head"
        measured = stored <= size  # shifts; what crops of larger images would gain, nobody knows
        self.watches = self.name == "auto" and measured and robust and REFERENCES[settings.reference].finds_rate
        self.now: Augmentation = augmentation(self.name, *self.sides)

    def becomes_harder(self, training: Tensor, validation: Tensor) -> bool:
        """bool [n], what is right of each: whether they are apart, for the first time."""
        if training.double().mean() - validation.double().mean() <= APART:
            return False
        self.load({"name": HARDER})
        return True

    def state(self) -> dict[str, Any]:
        return {"name": self.name}

    def load(self, state: dict[str, Any]) -> None:
        self.name, self.watches = state["name"], self.watches and state["name"] != HARDER
        self.now = augmentation(self.name, *self.sides)
