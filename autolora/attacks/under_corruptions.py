"""Which images a network reads rightly after each of Hendrycks' fifteen corruptions, at five severities.

    right = under_corruptions(model, images, Settings(seed=0))       # bool [n,15,5]; its mean is the accuracy

Progress is a file for each corruption and severity. Several processes share the 75 out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autolora.attacks.checks import in_advance, known_labels, pixels
from autolora.attacks.engine.journal import Journal
from autolora.attacks.engine.network import Network, predicted
from autolora.attacks.engine.prepare import at_rest, default_batch, device_of, full_precision
from autolora.attacks.evaluation import Answers, Settings
from autolora.attacks.verdicts import require
from autolora.common import distributed
from autolora.common.files import replacing, weights_sha256
from autolora.common.progress import bar
from autolora.corruptions.corrupt import CORRUPTIONS, SEVERITIES, corrupted
from autolora.data.images import TestImages

PART = 256  # images that are corrupted together
Kind = tuple[str, int]  # a corruption and its severity
KINDS: list[Kind] = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def under_corruptions(model: Answers, images: TestImages, settings: Settings) -> Tensor:
    require([*in_advance(model, gradients=False), pixels(images.pixels())])
    device = settings.device or device_of(model)
    folder = None if settings.progress is None else Path(settings.progress)
    mine = distributed.mine(KINDS)
    found: dict[Kind, Tensor] = {}
    with at_rest(model), full_precision(), _bar(settings, len(mine)) as shown:
        network = Network(model, settings.batch_size or default_batch(device, model, images.pixels()[:1].to(device)))
        _claim(folder, model, network, images, settings, device)
        for kind in mine:
            file = None if folder is None else folder / f"{kind[0]}-{kind[1]}.npy"
            found[kind] = _kept(file, partial(_right, network, images, kind, settings.seed, device))
            shown.update()
    found = distributed.gathered(found)
    return torch.stack([found[kind] for kind in KINDS], 1).view(len(images), len(CORRUPTIONS), len(SEVERITIES))


def _claim(
    folder: Path | None, model: Answers, network: Network, images: TestImages, settings: Settings, device: torch.device
) -> None:
    """The folder belongs to this network, these images and labels and this seed, as that of an attack does."""
    few = sorted(range(len(images)), key=images.ids.__getitem__)[:8]
    logits = network.all_logits(images.pixels()[few], device)
    known_labels(images.labels(), logits.shape[1])
    weights = model.state_dict() if isinstance(model, nn.Module) else {}
    named = sorted(zip(images.ids, images.y.tolist()))
    determines = {
        "weights": weights_sha256({name: t for name, t in weights.items() if isinstance(t, Tensor)}),
        "seed": settings.seed,
        "batch_size": network.batch,
        "images": hashlib.sha256(repr(named).encode()).hexdigest(),
    }
    measured = {"pixels": images.pixels().double().sum().view(1)}
    answers = {} if settings.version == "rand" else {"logits": logits}  # which are others each time
    Journal(folder).claim(determines, measured | answers)


def _bar(settings: Settings, total: int) -> tqdm:
    return bar(total, "corruptions", disable=not settings.show or distributed.process_number() > 0)


def _right(network: Network, images: TestImages, kind: Kind, seed: int, device: torch.device) -> Tensor:
    """Of one corruption and severity: bool [n]."""
    answers = []
    for start in range(0, len(images), PART):
        rows = slice(start, start + PART)
        changed = corrupted(as_bytes(images.x[rows]), images.ids[rows], *kind, seed=seed)
        answers.append(predicted(network.all_logits(changed.float() / 255, device)).cpu())
    return torch.cat(answers) == images.labels()


def as_bytes(x: np.ndarray) -> Tensor:
    """Corruptions are made on bytes, as published."""
    return torch.from_numpy(x if x.dtype == np.uint8 else (x * 255).round().astype(np.uint8))


def _kept(file: Path | None, find: Callable[[], Tensor]) -> Tensor:
    """What an earlier life found, or what is found now."""
    if file is not None and file.exists():
        return torch.from_numpy(np.load(file, allow_pickle=False))
    found = find()
    if file is not None:
        with replacing(file) as part, open(part, "wb") as opened:
            np.save(opened, found.numpy())
    return found
