"""Write the network that was attacked as one ONNX file with its evidence inside, and measure the file itself.

    dvc repro export       ->  models/export/model.onnx (and variants), reports/export.json

The file is compared with torch, shown the stored adversarial examples, and attacked by Square through onnxruntime. The
stage refuses weights that are not those which `evaluate` attacked.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from tqdm import tqdm

from autolora.backbones import Classifier, load_classifier, read_notes
from autolora.export import evidence, export_onnx, opset
from autolora.files import file_sha256, read_json, write_json
from autolora.runtime import logits, open_session
from autolora.shipped import QUERIES, STEPS, Replayed, parity, replay, square
from autolora.statistics import wilson
from autolora.threat import Threat
from stages.params import load
from stages.work import StageError, main, only_one, timed, work_dir

MERGED, ADVERSARIAL = Path("models/merged.safetensors"), Path("models/adversarial.npz")
ROBUSTNESS, CLASSES = Path("reports/robustness.json"), Path("data/prepared/test/classes.json")
EXPORT, REPORT = Path("models/export"), Path("reports/export.json")


class Examples(NamedTuple):
    """What `evaluate` left: the images that were attacked, and what it found."""

    x: np.ndarray  # float32 [n,3,h,w]
    adversarial: np.ndarray
    y: np.ndarray
    ids: list[str]
    found: np.ndarray


def export() -> None:
    params = load("export")
    with timed("export") as record:
        robustness, examples = read_json(ROBUSTNESS), read_examples()
        model = load_classifier(MERGED)
        refuse_other_weights(robustness, params.threat.value())
        inputs = {str(path): file_sha256(path) for path in (MERGED, ADVERSARIAL, ROBUSTNESS, CLASSES)}
        work = work_dir("export", **params.as_dict(), **inputs, onnxruntime=onnxruntime.__version__)
        with only_one(work):
            report = written(model, robustness, examples, params, work)
            publish(work / "files", EXPORT)
        write_json(REPORT, report)
        record["bytes"] = report["bytes"]


def read_examples() -> Examples:
    with np.load(ADVERSARIAL) as data:
        x = data["x"].astype(np.float32) / 255
        ids = [name.decode() if isinstance(name, bytes) else str(name) for name in data["ids"].tolist()]
        return Examples(x, data["adversarial"], data["y"], ids, data["found"])


def refuse_other_weights(robustness: dict[str, Any], threat: Threat) -> None:
    """What ships is what was attacked, under the threat model that the file will name."""
    merged = read_notes(MERGED)["weights_sha256"]
    if merged != robustness["weights_sha256"]:
        raise StageError(
            f"{MERGED} holds weights {merged[:12]}, but {ROBUSTNESS} speaks of {robustness['weights_sha256'][:12]}: "
            "what ships must be what was attacked; run `dvc repro evaluate`"
        )
    if robustness["threat"]["text"] != str(threat):
        raise StageError(
            f"threat is {threat}, but {ROBUSTNESS} was measured under {robustness['threat']['text']}: "
            "run `dvc repro evaluate`"
        )


def written(model: Classifier, robustness: dict, examples: Examples, params: Any, work: Path) -> dict[str, Any]:
    """model.onnx under work/files, and what was measured on it."""
    path = work / "files" / "model.onnx"
    notes = read_notes(MERGED)
    said = evidence(robustness, read_json(CLASSES), params.export.license or "not stated", toward=notes["toward"])
    digest = export_onnx(model, path, said, params.export.input)
    device = "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"
    session = open_session(path, device, torch.get_num_threads())
    answer = partial(logits, session)
    report = {
        "onnx_sha256": digest,
        "weights_sha256": robustness["weights_sha256"],
        "bytes": path.stat().st_size,
        "input": params.export.input,
        "opset": opset(onnx.load(str(path))),
        "device": device,
        "parity": agreed(parity(model, answer, as_sent(examples, params.export.input))),
        "versions": {name: installed(name).split("+")[0] for name in ("torch", "onnx", "onnxruntime", "onnxscript")},
    }
    stood = replay(answer, examples.x, examples.adversarial, examples.y)
    return report | measured(answer, stood, examples, params, work) | {"variants": {}}


def as_sent(examples: Examples, pixels: str) -> dict[str, np.ndarray]:
    """The images that both networks are shown: bytes can hold no adversarial image but the nearest one on the grid."""
    found = {"clean": examples.x, "adversarial": examples.adversarial}
    return {name: np.rint(x * 255) / np.float32(255) for name, x in found.items()} if pixels == "uint8" else found


def agreed(compared: dict[str, Any]) -> dict[str, Any]:
    """Refuse a file that answers otherwise than the network that was attacked."""
    if compared["label_flips_beyond_noise"] or compared["max_difference"] > compared["noise"]:
        raise StageError(
            f"model.onnx is not the network that was attacked: logits differ from torch by up to "
            f"{compared['max_difference']:.2g} (rounding explains {compared['noise']:.1g}), and "
            f"{compared['label_flips_beyond_noise']} labels flip that rounding cannot flip"
        )
    return compared


def measured(answer: Any, stood: Replayed, examples: Examples, params: Any, work: Path) -> dict[str, Any]:
    """The file's own accuracies: the stored adversarial examples shown to it, then Square on what still stands."""
    threat, limit = params.threat.value(), params.export.check_images
    standing = sorted(np.flatnonzero(stood.robust), key=lambda i: examples.ids[i])[
        :limit
    ]  # ids are hashes: a fair draw
    x, y, ids = examples.x[standing], examples.y[standing], [examples.ids[i] for i in standing]
    with tqdm(total=len(ids) * STEPS, desc="export: Square through onnxruntime", unit="query") as bar:
        stands = square(answer, x, y, ids, threat, params.seed, progress=work / "square", tick=bar.update)
    accuracy = float(stood.robust.mean())
    share = float(stands.mean()) if len(stands) else 1.0
    return {
        "replay": {
            "n": len(examples.y),
            "clean_accuracy": float(stood.clean.mean()),
            "robust_accuracy": accuracy,
            "no_longer_fooled": int((examples.found & stood.robust).sum()),
        },
        "square_onnxruntime": {
            "n": len(ids),
            "stood": int(stood.robust.sum()),
            "broken": int((~stands).sum()),
            "standing_ci95": [round(bound, 6) for bound in wilson(int(stands.sum()), len(stands))],
            "robust_accuracy": round(accuracy * share, 6),
            "queries": QUERIES,
        },
    }


def publish(folder: Path, target: Path) -> None:
    """The whole folder at once, by a rename: a reader never meets half of it."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        shutil.copytree(folder, part)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    main(export)
