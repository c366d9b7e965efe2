"""A made-up run: every file that `register` reads, small, plausible, and clearly not measured.

    make_run(folder, robust=0.6)      # models/export/model.onnx, reports/*, data/quality.json, params.yaml, dvc.yaml

The network is a random linear classifier of 8 x 8 pixels, but the hashes, flags and counts agree as they must, and
reports/robustness.json is the record of a real attack: only its flags are made up.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper

from autolora.attacks.also import Also
from autolora.attacks.autoattack import autoattack
from autolora.attacks.checks import enough_images
from autolora.attacks.report import Report
from autolora.attacks.verdicts import NAMES, Check, ordered
from autolora.common.files import file_sha256, read_json, write_json
from autolora.common.statistics import mcnemar
from autolora.data.sample import ids_sha256
from autolora.threat import Threat
from stages.evaluation.beyond import columns, rows
from stages.evaluation.provenance_checks import nothing_chosen, splits_apart, weights_match

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [str(i) for i in range(10)]
AROUND = (12, 14, 15)


def make_run(
    folder: Path,
    robust: float = 0.6,
    clean: float = 0.9,
    n: int = 200,
    seed: int = 0,
    eps: int = 16,
    version: str = "standard",
    images: str = "a",
    failed_check: int | None = None,
    flips: int = 0,
    name: str = "synthetic",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weights, matrix = make_onnx(folder / "models/export/model.onnx", rng, eps)
    flags = make_flags(rng, n, robust, clean, images)
    (folder / "reports").mkdir(exist_ok=True)
    np.save(folder / "reports/robust_flags.npy", flags)
    make_examples(folder, rng, flags, matrix, eps)
    write_json(folder / "reports/robustness.json", robustness(flags, weights, eps, version, failed_check))
    write_json(folder / "reports/export.json", exported(folder, weights, flips))
    write_json(folder / "data/quality.json", quality())
    make_curves(folder, robust, clean)
    make_project(folder, name)
    return folder


def make_onnx(path: Path, rng: np.random.Generator, eps: int) -> tuple[str, np.ndarray]:
    """Flatten and one matrix; returns the hash of the weights, kept in the metadata as export does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = rng.normal(size=(192, 10)).astype(np.float32)
    digest = hashlib.sha256(matrix.tobytes()).hexdigest()
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
        ],
        "synthetic",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    notes = {"weights_sha256": digest, "threat": f"linf:{eps}/255", "classes": json.dumps(CLASSES)}
    helper.set_model_props(model, notes)
    onnx.save(model, path)
    return digest, matrix


def make_flags(rng: np.random.Generator, n: int, robust: float, clean: float, images: str) -> np.ndarray:
    """Correlated between seeds as real models are: the same images are hard for everyone."""
    kind = [(f, "S64" if f == "id" else "i8" if f == "label" else "?") for f in
            ("id", "label", "clean", "robust", "baseline_clean", "baseline_robust")]  # fmt: skip
    flags = np.zeros(n, dtype=kind)
    flags["id"] = [hashlib.sha256(f"{images}{i}".encode()).hexdigest().encode() for i in range(n)]
    flags["label"] = np.arange(n) % 10
    hardness = np.random.default_rng(99).uniform(size=n) * 0.9 + 0.1 * rng.uniform(size=n)
    rank = hardness.argsort().argsort() / n
    flags["clean"], flags["robust"] = rank < clean, rank < robust
    flags["baseline_clean"], flags["baseline_robust"] = rank < min(1, clean + 0.06), rank < 0.02
    return flags


def make_examples(folder: Path, rng: np.random.Generator, flags: np.ndarray, matrix: np.ndarray, eps: int) -> None:
    """Random images under the label that the network gives them; one step against it breaks some."""
    n = min(len(flags), 60)
    x = rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    pixels = x.astype(np.float32) / 255
    y = (pixels.reshape(n, -1) @ matrix).argmax(1)
    step = np.sign(matrix[:, (y + 1) % 10] - matrix[:, y]).T.reshape(x.shape).astype(np.float32)
    moved = (pixels + step * eps / 255).clip(0, 1)
    found = (moved.reshape(n, -1) @ matrix).argmax(1) != y
    np.savez(
        folder / "models/adversarial.npz",
        x=x,
        adversarial=np.where(found[:, None, None, None], moved, pixels),
        y=y,
        ids=flags["id"][:n],
        found=found,
        threat=f"linf:{eps}/255",
    )


def robustness(flags: np.ndarray, weights: str, eps: int, version: str, failed: int | None) -> dict[str, Any]:
    """As evaluate writes it: the model's report, and what was found around it."""
    n = len(flags)
    only_model = int((flags["robust"] & ~flags["baseline_robust"]).sum())
    only_baseline = int((flags["baseline_robust"] & ~flags["robust"]).sum())
    twin = report_of(flags, "baseline_clean", "baseline_robust", eps, version).as_record()
    keys = ("clean_accuracy", "robust_accuracy", "ci95", "attacks")
    report = report_of(flags, "clean", "robust", eps, version)
    report.checks = ordered([*report.checks, *around(flags)])
    if failed:
        report.checks = [c for c in report.checks if c.number != failed]
        report.checks = ordered([*report.checks, Check(failed, NAMES[failed], "fail", "planted")])
    return report.as_record() | {
        "data": {
            "name": "digits",
            "split": "test",
            "n": n,
            "ids_sha256": ids_sha256([one.decode() for one in flags["id"].tolist()]),
            "stratified": True,
        },
        "weights_sha256": weights,
        "alpha": 0.1,
        "baseline": {key: twin[key] for key in keys} | {"weights_sha256": "0" * 64},
        "mcnemar": {"p": mcnemar(only_model, only_baseline), "only_model": only_model, "only_baseline": only_baseline},
        "by_class": [_class(flags, i) for i in range(10)],
    }


@cache
def attacked() -> Report:
    """A real attack, on a few random images and a random linear network."""
    random = torch.Generator().manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(10, 192, generator=random))
        x = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=random)
        y = network(x / 255).argmax(1)
    return autoattack(network, x, y, Threat("linf", "2/255"), show=False)


def report_of(flags: np.ndarray, clean: str, robust: str, eps: int, version: str) -> Report:
    """The real report, with these flags in place of its own: as many images, as many broken by each attack."""
    real = attacked()
    report = replace(
        real,
        threat=Threat("linf", f"{eps}/255"),
        version=version,
        ids=[i.decode() for i in flags["id"]],
        y=torch.from_numpy(flags["label"].copy()),
        clean=torch.from_numpy(flags[clean].copy()),
        robust=torch.from_numpy(flags[robust].copy()),
    )
    before, after = report.clean_accuracy, report.robust_accuracy
    left = (0.15, 0.02, 0.0, 0.0)  # of what will fall, what still stands after each attack
    report.attacks = [replace(a, robust_accuracy=after + v * (before - after)) for a, v in zip(real.attacks, left)]
    report.checks = [enough_images(report) if c.number == 11 else c for c in real.checks if c.number not in AROUND]
    return report


def around(flags: np.ndarray) -> list[Check]:
    """Checks 12, 14 and 15, which evaluate makes of the files around the attack."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    ids = [i.decode() for i in flags["id"]]
    return [nothing_chosen(stages), weights_match({"robust": "1"}, {"robust": "1"}), splits_apart([], ids)]


def _class(flags: np.ndarray, label: int) -> dict[str, Any]:
    of = flags[flags["label"] == label]
    return {
        "class": CLASSES[label],
        "n": len(of),
        "clean": float(of["clean"].mean()),
        "robust": float(of["robust"].mean()),
    }


def exported(folder: Path, weights: str, flips: int) -> dict[str, Any]:
    path = folder / "models/export/model.onnx"
    return {
        "onnx_sha256": file_sha256(path),
        "weights_sha256": weights,
        "bytes": path.stat().st_size,
        "opset": 20,
        "parity": {
            "max_difference": 2.1e-6, "label_flips": flips, "label_flips_beyond_noise": flips,
            "batches": [{"batch": b, "clean": 2e-6, "adversarial": 2e-6} for b in (1, 3, 64)],
        },
        "replay": {"n": 60, "robust_accuracy": 0.62},
        "square_onnxruntime": {"n": 60, "robust_accuracy": 0.66},
        "variants": {"int8": {"written": False, "reason": "loses 2.1 points, 1.0 allowed", "clean_accuracy": 0.88,
                              "robust_accuracy": 0.57, "bytes": 4000}},
        "versions": {"onnx": "1.23.2"},
    }  # fmt: skip


def quality() -> dict[str, Any]:
    line = "3 of 1797 images look like another: images/3.png"
    good = {"severity": "critical", "passed": True, "failed": 0, "of": 1797}
    return {
        "verdict": "fit, with warnings",
        "images": {"found": 1797, "used": 1797, "train": 1366, "val": 72, "test": 359},
        "classes": 10,
        "checks": {
            "two_splits": good,
            "near_duplicates": {"severity": "warning", "passed": False, "failed": 3, "of": 1797, "examples": [line]},
        },
        "critical": [],
        "warnings": [line],
    }


def make_curves(folder: Path, robust: float, clean: float, epochs: int = 60) -> None:
    lr, rows = 0.01, []
    for epoch in range(1, epochs + 1):
        rise = 1 - math.exp(-epoch / 12)
        halved = epoch in (29, 41, 49, 53, 57)
        sa = 0.5 + 0.48 * rise
        rows.append({
            "epoch": epoch, "lr": lr, "lambda1": 1 - sa, "lambda2": 6 * sa, "loss": 2.5 - 1.4 * rise,
            "loss_natural": 2 - 1.7 * rise, "loss_adversarial": 2.3 - 1.2 * rise, "loss_kl": 0.1 + 0.05 * rise,
            "natural_accuracy": sa, "val_clean": clean * rise, "val_robust": robust * (rise - 0.04 * (epoch % 3)),
            "gradient_cosine": 0.2 * math.exp(-epoch / 8) - 0.02,
            "event": "halved+restored" if halved else "best" if epoch == 55 else "",
        })  # fmt: skip
        lr = lr / 2 if halved else lr
    _table(folder / "reports/training.csv", rows)
    _table(folder / "reports/alpha_curve.csv", [
        {"toward": "branch", "alpha": a / 10, "clean": clean + 0.004 * a, "robust": robust - 0.002 * a * a, "n": 72,
         "chosen": int(a == 1)}
        for a in range(11)
    ])  # fmt: skip
    _table(folder / "reports/eps_curve.csv", [
        {"model": m, "eps": e / 255, "accuracy": top * math.exp(-e / scale), "attack": "pgd-50"}
        for m, top, scale in (("robust", clean, 40), ("natural", min(1, clean + 0.06), 6))
        for e in (0, 2, 4, 8, 12, 16, 24, 32, 64, 128)
    ])  # fmt: skip
    from PIL import Image

    Image.new("RGB", (60, 20), (90, 90, 90)).save(folder / "reports/adversarial.png")


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


PARAMS = """
data: {{source: digits, image_size: 8}}
backbone: {{arch: resnet10t, weights: null}}
threat: {{norm: linf, eps: 16/255}}
register:
  name: {name}
  gates: {{clean: 0.8, robust: 0.3}}
"""


def make_project(folder: Path, name: str) -> None:
    """dvc.yaml as it is in the repository, params.yaml with a name and gates of the run's own."""
    (folder / "params.yaml").write_text(PARAMS.format(name=name))
    shutil.copy(ROOT / "dvc.yaml", folder / "dvc.yaml")


def add_also(folder: Path) -> Path:
    """As with evaluate.also of l2:0.5 and corruptions: some images fall at L2 too, and corruptions as they come."""
    path, record = folder / "reports/robust_flags.npy", read_json(folder / "reports/robustness.json")
    flags = np.load(path)
    rng, n = np.random.default_rng(0), len(flags)
    found = {}
    for key in ("robust", "baseline_robust"):
        report = report_of(flags, "clean", key, 16, "standard")
        other = replace(report, threat=Threat("l2", 0.5), robust=report.robust & torch.from_numpy(rng.random(n) < 0.9))
        found[key] = report, Also({"l2:0.5": other}, torch.from_numpy(rng.random((n, 15, 5)) < 0.7))
    (main, ours), (natural, twin) = found.values()
    record["also"] = rows(ours, twin, (main, natural), side=32)
    record["expected_robustness"] = {"up_to": 32 / 255, "accuracy": 0.5, "baseline": 0.1, "attack": "apgd-ce-20"}
    added = columns(ours, twin)
    kinds = [*flags.dtype.descr, *((name, "?" if v.dtype == bool else "i8") for name, v in added.items())]
    table = np.zeros(n, dtype=kinds)
    for name in flags.dtype.names or ():
        table[name] = flags[name]
    for name, values in added.items():
        table[name] = values
    np.save(path, table)
    write_json(folder / "reports/robustness.json", record)
    return folder
