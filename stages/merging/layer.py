"""The end of the dial that merge.toward: critical turns to, made of training images and never of validation's."""

from __future__ import annotations

import sys
from typing import cast

from autolora.backbones.classifier import Classifier
from autolora.common.code import code_sha256
from autolora.common.files import weights_sha256
from autolora.training.criticality import Critical, critical
from autolora.training.settings import as_split
from stages.common.prepared import data_keys, read_split
from stages.common.runner import work_dir
from stages.estimate import announce
from stages.merging.validation import Validation


def tuned_layer(robust: Classifier, validation: Validation, seed: int, augmentation: str) -> tuple[Classifier, str]:
    """The robust network with its least critical layer tuned naturally, on the CPU, and that layer's name."""
    determines = {"seed": seed, "augmentation": augmentation, "threat": str(validation.threat), "code": code_sha256()}
    determines |= {"weights": weights_sha256(robust.state_dict()), "device": validation.device.type}
    folder = work_dir("merge", **determines, data=data_keys("train"))
    train = as_split(read_split("train"), "training")
    announce.critical(robust, len(train[1]))
    found = critical(
        robust.to(validation.device), train, validation.threat,
        size=validation.size, seed=seed, augmented=augmentation, folder=folder,
    )  # fmt: skip
    robust.cpu()
    print(f"merge: {told(found)}", file=sys.stderr)
    return cast(Classifier, found.network.cpu()), found.layer


def told(found: Critical) -> str:
    ranked = sorted(found.found.values())
    rises = f"{ranked[0]:.3g} there, {ranked[len(ranked) // 2]:.3g} in the median layer, {ranked[-1]:.3g} at most"
    return f"the least critical of {len(ranked)} layers is {found.layer} (rise of the loss: {rises})"
