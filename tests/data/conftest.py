"""A workspace of one's own: dvc.yaml and params.yaml in a temporary folder, and stages run inside it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter

from stages.prepare import prepare


class Workspace:
    """One checkout's worth of files, without its code."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.raw = folder, folder / "data/raw"
        self.raw.mkdir(parents=True)
        shutil.copy(root / "dvc.yaml", folder)
        self.params = yaml.safe_load((root / "params.yaml").read_text())
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


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A picture like no other: coloured clouds."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    clouds = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return clouds.filter(ImageFilter.GaussianBlur(1))


def fill(folder: Path, classes=("cat", "dog"), images: int = 20, first: int = 0) -> None:
    """Class folders with pictures 0.png, 1.png, ..., all different."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + images):
            picture(1000 * number + index).save(folder / name / f"{index}.png")
