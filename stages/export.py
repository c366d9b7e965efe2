"""Write the network that was attacked as one ONNX file with its evidence inside, and measure the file itself.

    dvc repro export       ->  models/export/model.onnx (and variants), reports/export.json

The file is compared with torch, shown the stored adversarial examples, and attacked by Square through onnxruntime. The
stage refuses weights that are not those which `evaluate` attacked.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from autolora.attacks.onnx_file import parity
from autolora.backbones.classifier import Classifier, load_classifier, read_notes
from autolora.common.code import code_sha256
from autolora.common.files import file_sha256, read_json, replacing_folder, write_json
from autolora.data.examples import Examples, read_examples
from autolora.export.notes import notes_in
from autolora.export.quantise import calibration_rows
from autolora.export.runtime import best_device, logits, onnxruntime, open_session
from autolora.export.write import evidence, export_onnx, opset
from autolora.threat import Threat
from stages.common.command_line import takes_no_arguments
from stages.common.runner import StageError, main, only_one, timed, work_dir
from stages.common.views import ExportParams, load
from stages.estimate import announce
from stages.evaluation.onnx_robustness import measure
from stages.evaluation.onnx_variants import Ingredients, make

MERGED, ADVERSARIAL = Path("models/merged.safetensors"), Path("models/adversarial.npz")
ROBUSTNESS, CLASSES = Path("reports/robustness.json"), Path("data/prepared/test/classes.json")
CALIBRATION = Path("data/prepared/val/images.npy")
EXPORT, REPORT = Path("models/export"), Path("reports/export.json")


def export() -> None:
    params = load(ExportParams)
    with timed("export", REPORT) as record:
        robustness, examples = read_json(ROBUSTNESS), read_examples(ADVERSARIAL)
        refuse_other_weights(robustness, params.threat)
        inputs = (MERGED, ADVERSARIAL, ROBUSTNESS, CLASSES, CALIBRATION)
        sources = {str(path): file_sha256(path) for path in inputs}
        versions = {"onnxruntime": onnxruntime.__version__, "code": code_sha256()}
        work = work_dir("export", **params.as_dict(), **sources, **versions)
        with only_one(work):
            shutil.rmtree(work / "files", ignore_errors=True)
            report = written(load_classifier(MERGED), robustness, examples, params, work)
            record["latency_ms"] = {
                p.name: latency(p, examples.images.floats) for p in sorted((work / "files").glob("*.onnx"))
            }
            publish(work / "files", EXPORT)
        write_json(REPORT, report)


def refuse_other_weights(robustness: dict[str, Any], threat: Threat) -> None:
    """What ships is what was attacked, under the threat model that the file will name."""
    merged = read_notes(MERGED)["weights_sha256"]
    if merged != robustness["weights_sha256"]:
        raise StageError(
            f"{MERGED} holds weights {merged[:12]}, but {ROBUSTNESS} speaks of {robustness['weights_sha256'][:12]}: "
            "what ships must be what was attacked; run `dvc repro evaluate`"
        )
    if (measured := Threat.from_record(robustness["threat"])) != threat:
        raise StageError(
            f"threat is {threat}, but {ROBUSTNESS} was measured under {measured}: run `dvc repro evaluate`"
        )


def written(
    model: Classifier, robustness: dict, examples: Examples, params: ExportParams, work: Path
) -> dict[str, Any]:
    """model.onnx under work/files, and what was measured on it and on its variants."""
    path, section, threat = work / "files" / "model.onnx", params.export, params.threat
    merged = read_notes(MERGED)
    more = {key: merged[key] for key in ("toward", "mix") if key in merged}
    said = evidence(robustness, read_json(CLASSES), section.license or "not stated", **more)
    digest = export_onnx(model, path, said, pixels=section.input)
    compared = compare(model, path, examples, section.input)
    announce.export(model, len(examples.images), section)
    found = measure(path, examples, threat, params.seed, section.check_images, work)
    shared = Ingredients(
        path, notes_in(path), found, examples, calibration(section.variants), threat, params.seed, section.check_images,
        section.max_robust_drop, work,
    )  # fmt: skip
    return {
        "onnx_sha256": digest,
        "weights_sha256": robustness["weights_sha256"],
        "bytes": path.stat().st_size,
        "input": section.input,
        "opset": opset(onnx.load(str(path))),
        "device": best_device(),
        "parity": compared,
        **found.record,
        "variants": {name: make(name, shared, path.parent) for name in section.variants},
        "versions": {name: installed(name).split("+")[0] for name in ("torch", "onnx", "onnxruntime", "onnxscript")},
    }


def calibration(variants: Sequence[str]) -> np.ndarray:
    """Those validation images alone that int8 is scaled on: of the others nobody needs floats."""
    images = np.load(CALIBRATION, mmap_mode="r")
    rows = calibration_rows(len(images) if "int8" in variants else 0)
    return images[rows].astype(np.float32) / 255


def compare(model: Classifier, path: Path, examples: Examples, pixels: str) -> dict[str, Any]:
    """Refuse a file that answers otherwise than the network that was attacked."""
    images = {"clean": examples.images.floats, "adversarial": examples.adversarial}
    if pixels == "uint8":  # bytes hold no adversarial image but the nearest one on the grid
        images = {name: np.rint(x * 255) / np.float32(255) for name, x in images.items()}
    session = open_session(path, best_device(), torch.get_num_threads())
    compared = parity(model, partial(logits, session), images)
    if compared["label_flips_beyond_noise"] or not compared["max_difference"] <= compared["noise"]:
        raise StageError(
            f"model.onnx is not the network that was attacked: logits differ from torch by up to "
            f"{compared['max_difference']:.2g} (rounding explains {compared['noise']:.1g}), and "
            f"{compared['label_flips_beyond_noise']} labels flip that rounding cannot flip"
        )
    return compared


def latency(path: Path, images: np.ndarray, repeats: int = 30) -> dict[str, float]:
    """Median milliseconds of one call, at batches 1 and 64."""
    session = open_session(path, best_device(), torch.get_num_threads())
    found = {}
    for batch in (1, 64):
        part = np.resize(images, (batch, *images.shape[1:]))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            logits(session, part)
            seconds.append(time.perf_counter() - start)
        found[str(batch)] = round(1000 * float(np.median(seconds)), 3)
    return found


def publish(folder: Path, target: Path) -> None:
    """The whole folder at once, by a rename: a reader never meets half of it."""
    with replacing_folder(target) as part:
        for file in folder.iterdir():
            shutil.copyfile(file, part / file.name)  # copytree would hide why the disk said no


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(export)
