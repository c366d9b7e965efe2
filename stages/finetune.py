"""Fine-tune the backbone robustly, and its naturally tuned twin beside it.

data/prepared/{train,val} -> models/finetuned/, reports/training.csv. Killed, it goes on from the last whole epoch
(`.work/finetune/<key>`). The test part is never opened here.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import autolora
from autolora.backbones import Classifier, save_classifier
from autolora.branch import save_branch
from autolora.downloads import resolve_weights
from autolora.files import file_sha256, read_json, replacing, write_json
from autolora.loading import load_backbone
from autolora.training import Tuned
from autolora.training import finetune as tune
from stages.params import load
from stages.work import main, only_one, timed, work_dir

PREPARED, FINETUNED, TRAINING = Path("data/prepared"), Path("models/finetuned"), Path("reports/training.csv")
COLUMNS = ["epoch", "lr", "lambda1", "lambda2", "loss", "loss_natural", "loss_adversarial", "loss_kl"]
COLUMNS += ["natural_accuracy", "val_clean", "val_robust", "gradient_cosine", "event"]


def finetune() -> None:
    params = load("finetune")
    train, val = read_split("train"), read_split("val")
    classes = read_json(PREPARED / "train" / "classes.json")
    with timed("finetune") as record:
        model = backbone(params, classes)
        work = work_dir("finetune", **params.as_dict(), data=data_keys(), code=code_key())
        with only_one(work):
            robust = tuned(params, model, train, val, params.finetune.method, work)
            natural = tuned(params, model, train, val, "natural", work)
            write_outputs(params, robust, natural)
        record["images_per_second"] = round(float(np.median([r["images_per_second"] for r in robust.history])), 1)
        record["epochs"] = [{k: r[k] for k in ("epoch", "seconds", "images_per_second")} for r in robust.history]


def tuned(params: Any, model: Classifier, train: Any, val: Any, method: str, work: Path) -> Tuned:
    section = params.finetune
    return tune(
        model,
        train,
        val,
        params.threat.value(),
        method,
        section.epochs,
        params.seed,
        reference=section.reference,
        batch_size=section.batch_size,
        augmentation=section.augmentation,
        checkpoints=work,
    )


def backbone(params: Any, classes: list[str]) -> Classifier:
    section = params.backbone
    return load_backbone(
        section.arch,
        weights=resolve_weights(section.weights, section.sha256),
        classes=len(classes),
        image_size=params.data.image_size,
        stem=section.stem,
        options=section.options,
        network_size=section.network_size,
        mean=section.mean,
        std=section.std,
        trained_for=section.trained_for,
        seed=params.seed,
    )


def read_split(name: str) -> tuple[np.ndarray, np.ndarray]:
    folder = PREPARED / name
    return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy")


def data_keys() -> dict[str, str]:
    """What the images are, without reading them: ids are hashes of their content."""
    return {f"{s}/{f}": file_sha256(PREPARED / s / f) for s in ("train", "val") for f in ("ids.npy", "labels.npy")}


def code_key() -> str:
    """Progress made by other code is another run's."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(Path(autolora.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def write_outputs(params: Any, robust: Tuned, natural: Tuned) -> None:
    part = FINETUNED.with_name(f".{FINETUNED.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    threat = str(params.threat.value())
    record = {
        "method": robust.method,
        "reference": params.finetune.reference,
        "threat": params.threat.value().as_record(),
        "seed": params.seed,
        "epochs": len(robust.history),
        "best_epoch": robust.best_epoch,
        "val_clean": robust.best["val_clean"],
        "val_robust": robust.best["val_robust"],
        "natural": {
            "best_epoch": natural.best_epoch,
            "val_clean": natural.best["val_clean"],
            "val_robust": natural.best["val_robust"],
        },
        "weights_sha256": {
            "robust": save_classifier(cast(Classifier, robust.model), part / "robust.safetensors", threat=threat),
            "branch": save_branch(robust.branch, part / "branch.safetensors"),
            "natural": save_classifier(cast(Classifier, natural.model), part / "natural.safetensors", threat="none"),
        },
    }
    write_json(part / "finetuned.json", record)
    shutil.rmtree(FINETUNED, ignore_errors=True)
    part.rename(FINETUNED)
    write_training(robust.history)


def write_training(history: list[dict[str, Any]]) -> None:
    with replacing(TRAINING) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for record in history:
            writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()})


if __name__ == "__main__":
    main(finetune)
