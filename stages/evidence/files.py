"""The files that are a model's evidence, and the one key by which their content is known.

    evidence = Evidence(".");  evidence.robustness["robust_accuracy"];  evidence.key

The same tree is read from the repository when a model is registered, and from the registry when it is promoted.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autolora.common.files import file_sha256, read_json
from autolora.data.examples import Examples, read_examples
from autolora.export.notes import notes_in
from stages.common.runner import StageError

ONNX = "models/export/model.onnx"
EXPORT = "models/export"
ROBUSTNESS = "reports/robustness.json"
FLAGS = "reports/robust_flags.npy"
EXPORTED = "reports/export.json"
QUALITY = "data/quality.json"
TRAINING = "reports/training.csv"
ALPHA_CURVE = "reports/alpha_curve.csv"
EPS_CURVE = "reports/eps_curve.csv"
CONTACT_SHEET = "reports/adversarial.png"
EXAMPLES = "models/adversarial.npz"
TUNED = "models/finetuned"
FINETUNED = f"{TUNED}/finetuned.json"  # how it was trained: read where it lies, not registered
FILES = (QUALITY, ROBUSTNESS, FLAGS, EXPORTED, TRAINING, ALPHA_CURVE, EPS_CURVE, CONTACT_SHEET)


class Evidence:
    """One folder's evidence, read when it is asked for."""

    def __init__(self, folder: str | Path = ".") -> None:
        self.folder = Path(folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    @cached_property
    def manifest(self) -> dict[str, str]:
        """sha256 of every file that is registered: the network, its variants, and what was measured."""
        names = [*FILES, *(f"{EXPORT}/{p.relative_to(self.path(EXPORT))}" for p in _files(self.path(EXPORT)))]
        missing = [name for name in [*FILES, ONNX] if not self.path(name).is_file()]
        if missing:
            raise StageError(f"{', '.join(missing)}: not there; `dvc repro` writes what is missing")
        return {name: file_sha256(self.path(name)) for name in sorted(names)}

    @cached_property
    def key(self) -> str:
        return content_key(self.manifest)

    @cached_property
    def robustness(self) -> dict[str, Any]:
        return read_json(self.path(ROBUSTNESS))

    @cached_property
    def exported(self) -> dict[str, Any]:
        return read_json(self.path(EXPORTED))

    @cached_property
    def quality(self) -> dict[str, Any]:
        return read_json(self.path(QUALITY))

    @cached_property
    def flags(self) -> np.ndarray:
        return np.load(self.path(FLAGS), allow_pickle=False)

    @property
    def label_flips(self) -> int:
        """Labels on which the file and the attacked network differ, where that is no matter of rounding."""
        parity = self.exported["parity"]
        return int(parity.get("label_flips_beyond_noise", parity["label_flips"]))

    @cached_property
    def classes(self) -> list[str]:
        """Names in label order, from the file's own notes: `by_class` lacks a class of which no image was attacked."""
        return json.loads(notes_in(self.path(ONNX))["classes"])

    @cached_property
    def examples(self) -> Examples:
        return read_examples(self.path(EXAMPLES))

    def optional(self, name: str) -> dict[str, Any]:
        """A JSON file that tells more where it is there."""
        return read_json(self.path(name)) if self.path(name).is_file() else {}

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of one of the CSV files."""
        with open(self.path(name), newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def content_key(manifest: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(manifest), sort_keys=True).encode()).hexdigest()


def same_weights(evidence: Evidence) -> str:
    """The one sha256 that what was attacked, what was exported and what ships must share; refused when they do not."""
    found = {
        ROBUSTNESS: evidence.robustness["weights_sha256"],
        EXPORTED: evidence.exported["weights_sha256"],
        ONNX: notes_in(evidence.path(ONNX)).get("weights_sha256", "none"),
    }
    if len(set(found.values())) > 1:
        raise StageError(
            "these do not speak of the same weights: "
            + ", ".join(f"{name} of {digest[:12]}" for name, digest in found.items())
            + ". What is registered must be what was attacked: run `dvc repro`."
        )
    if evidence.exported["onnx_sha256"] != file_sha256(evidence.path(ONNX)):
        raise StageError(f"{ONNX} is not the file that {EXPORTED} describes (sha256 differs): run `dvc repro export`")
    return evidence.robustness["weights_sha256"]
