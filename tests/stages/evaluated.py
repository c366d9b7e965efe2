"""What the stages before `export` leave, in this folder, for a tiny network that was really attacked (PGD)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from autolora.attacks.pgd import pgd
from autolora.backbones.classifier import Classifier, save_classifier
from autolora.backbones.frozen import frozen
from autolora.common.files import write_json
from autolora.threat import Threat
from tests.export.nets import tiny

CLASSES = [f"class {i}" for i in range(10)]
THREAT = Threat("linf", "2/255")


def write_evaluated(n: int = 30, model: Classifier | None = None) -> None:
    model = model or tiny()
    digest = save_classifier(model, "models/merged.safetensors", alpha="0", toward="branch", threat=str(THREAT))
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    x = torch.from_numpy(pixels).float() / 255
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 10  # three that are wrong when clean
    with frozen(model):
        attacked = pgd(model, x, y, THREAT, 10, random_start=False)
    clean = model(x).argmax(1) == y
    found = clean & (model(attacked).argmax(1) != y)
    adversarial = torch.where(found[:, None, None, None], attacked, x)
    ids = np.array([hashlib.sha256(image.tobytes()).hexdigest().encode() for image in pixels])
    np.savez(
        "models/adversarial.npz", x=pixels, adversarial=adversarial.numpy(), y=y.numpy(), ids=ids, found=found.numpy(),
        threat=str(THREAT),
    )  # fmt: skip
    for part in ("test", "val"):
        Path(f"data/prepared/{part}").mkdir(parents=True, exist_ok=True)
        Path(f"data/prepared/{part}/classes.json").write_text(json.dumps(CLASSES))
        np.save(f"data/prepared/{part}/images.npy", pixels)
    write_json(
        "reports/robustness.json",
        {
            "threat": THREAT.as_record(),
            "data": {"name": "noise", "split": "test", "n": n, "ids_sha256": "d" * 64, "stratified": False},
            "weights_sha256": digest,
            "alpha": 0.0,
            "version": "fast",
            "clean_accuracy": float(clean.float().mean()),
            "robust_accuracy": float((clean & ~found).float().mean()),
            "ci95": [0.0, 1.0],
        },
    )
