"""What an evaluation has found out so far, image by image, in a folder: a killed run goes on where it stopped.

Finished jobs are appended in small files, each written by a rename; so a kill at any moment loses what is in flight
and nothing else. Several processes write into one folder, each under its own name, and read each other's files when
they start.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autolora.files import read_json, replacing, write_json

Found = dict[tuple[str, int], Tensor | None]  # (image id, rank) -> the adversarial image, or None


class Progress:
    def __init__(self, folder: Path | None, worker: int = 0, batch: int = 64, seconds: float = 5.0) -> None:
        self.folder, self.worker, self.batch, self.seconds = folder, worker, batch, seconds
        self.pending: list[tuple[str, int, Tensor | None]] = []
        self.written = time.monotonic()

    def claim(self, determines: dict, logits: Tensor) -> None:
        """The folder belongs to exactly this evaluation: no other, and none of another network, goes on from it."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "run.json"
        determines = determines | {"logits": logits[:8].double().cpu().tolist()}
        if not path.exists():
            return write_json(path, determines)
        known = read_json(path)
        same = np.shape(known["logits"]) == np.shape(determines["logits"])
        if same and np.allclose(known["logits"], determines["logits"], rtol=1e-3, atol=1e-3):
            determines["logits"] = known["logits"]  # rounding differs between machines
        for key, value in determines.items():
            if known.get(key) != value:
                what = "the network" if key == "logits" else f"{key} ({known.get(key)!r}, now {value!r})"
                raise ValueError(
                    f"{self.folder} holds the progress of another evaluation, which differs in {what}: "
                    "give another folder, or remove this one"
                )

    def read(self, attack: str) -> Found:
        found: Found = {}
        for path in sorted(self.folder.glob(f"{attack}.*.npz")) if self.folder else []:
            with np.load(path) as data:
                points = iter(torch.from_numpy(data["adversarial"]))
                for image, rank, broken in zip(data["ids"].tolist(), data["ranks"].tolist(), data["found"].tolist()):
                    found[image.decode(), rank] = next(points) if broken else None
        return found

    def add(self, attack: str, image: str, rank: int, adversarial: Tensor | None) -> None:
        self.pending.append((image, rank, adversarial))
        if len(self.pending) >= self.batch or time.monotonic() - self.written > self.seconds:
            self.flush(attack)

    def flush(self, attack: str) -> None:
        pending, self.pending, self.written = self.pending, [], time.monotonic()
        if self.folder is None or not pending:
            return
        ids, ranks, points = zip(*pending)
        broken = [p.numpy() for p in points if p is not None]
        number = len(list(self.folder.glob(f"{attack}.{self.worker}.*.npz")))
        with replacing(self.folder / f"{attack}.{self.worker}.{number:06d}.npz") as part, open(part, "wb") as file:
            np.savez(
                file,
                ids=np.array([i.encode() for i in ids]),
                ranks=np.array(ranks),
                found=np.array([p is not None for p in points]),
                adversarial=np.stack(broken) if broken else np.zeros((0,), np.float32),
            )
