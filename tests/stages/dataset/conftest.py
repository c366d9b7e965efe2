"""A workspace of one's own: dvc.yaml and params.yaml in a temporary folder, and stages run inside it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.prepare import prepare


class Workspace:
    """One checkout's worth of files, without its code."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.raw = folder, folder / "data/raw"
        self.raw.mkdir(parents=True)
        shutil.copy(root / "dvc.yaml", folder)
        self.params = yaml.safe_load((root / "params.yaml").read_text())
        self.params["backbone"]["weights"] = None  # they lie in the checkout, and prepare looks for them first
        self.set(source="folder", path="data/raw", image_size=32, test_fraction=0.2, validation_fraction=0.2)

    def set(self, **data) -> None:
        self.params["data"] |= data
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params))

    def prepare(self) -> dict[str, dict[str, str]]:
        prepare()
        return self.manifest()

    def manifest(self) -> dict[str, dict[str, str]]:
        with open(self.folder / "data/manifest.csv", newline="", encoding="utf-8") as file:
            return {row["path"]: row for row in csv.DictReader(file)}

    def array(self, split: str, name: str) -> np.ndarray:
        return np.load(self.folder / f"data/prepared/{split}/{name}.npy", mmap_mode="r")

    def ids(self) -> dict[str, list[str]]:
        return {s: [i.decode() for i in self.array(s, "ids")] for s in ("train", "val", "test")}


@pytest.fixture
def workspace(tmp_path, root, monkeypatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOLORA_WORK", raising=False)
    return Workspace(tmp_path, root)
