"""The validation part: every network is judged on it once, and what was found is kept as soon as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from autolora.backbones.classifier import Classifier
from autolora.common.code import code_sha256
from autolora.common.files import file_sha256, replacing
from autolora.threat import Threat
from autolora.training import nuts
from autolora.training.dial import judge
from stages.common.runner import work_dir

FINETUNED, VALIDATION = Path("models/finetuned"), Path("data/prepared/val")


class Validation:
    """A crash costs one network."""

    def __init__(self, threat: Threat) -> None:
        files = [*FINETUNED.rglob("*.safetensors"), *VALIDATION.glob("*.npy")]
        sources = {str(f): file_sha256(f) for f in sorted(files)}
        self.folder = work_dir("merge", files=sources, threat=str(threat), code=code_sha256())
        self.threat = threat
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        images, labels = (torch.from_numpy(np.load(VALIDATION / f"{name}.npy")) for name in ("images", "labels"))
        self.images, self.labels = images.to(self.device), labels.to(self.device)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        return self.images.shape[-1]

    def judged(
        self, name: str, network: Callable[[], Classifier], on_batch: Callable[[int], object] = lambda n: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which images are right, and which stay right under attack; `network` is made where nobody has asked yet."""
        kept = self.folder / f"{name}.npy"
        if kept.exists():
            on_batch(len(self))
        else:
            model = network().to(self.device)
            by = nuts.judged if model.spec.mixture is not None else judge
            flags = by(model, self.images, self.labels, self.threat, on_batch=on_batch)
            with replacing(kept) as part, open(part, "wb") as file:
                np.save(file, np.stack(flags))
        clean, robust = np.load(kept)
        return clean, robust

    def mixture(self, robust: Classifier, natural: Classifier) -> tuple[Classifier | None, str]:
        pair = robust.to(self.device), natural.to(self.device)
        return nuts.mixture(*pair, self.images, self.labels, self.threat)
