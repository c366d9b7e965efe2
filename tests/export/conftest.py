"""A folder with what the stages before `export` leave, for a tiny network that was really attacked (PGD)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from autolora.attacks.onnx_file import square
from autolora.attacks.pgd import pgd
from autolora.backbones.classifier import Classifier, save_classifier
from autolora.backbones.frozen import frozen
from autolora.common.files import write_json
from autolora.threat import Threat
from tests.export.nets import tiny

CLASSES = [f"class {i}" for i in range(10)]
THREAT = Threat("linf", "2/255")


@pytest.fixture
def evaluated(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`run(key=value)` runs the export stage with these keys of `export` changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.evaluation.onnx_robustness.square", partial(square, queries=100))  # of 5,000: for time
    write_evaluated()
    Path("dvc.yaml").write_text((root / "dvc.yaml").read_text())

    def run(**changed: object) -> None:
        from stages.export import export

        params = yaml.safe_load((root / "params.yaml").read_text())
        params["threat"] = {"norm": "linf", "eps": "2/255"}
        params["export"] |= {"check_images": 0} | changed
        Path("params.yaml").write_text(yaml.safe_dump(params))
        export()

    return run


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
