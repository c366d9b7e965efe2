"""The journal of an evaluation: what it has found out so far, image by image, so that a killed run goes on from there.

Finished jobs are appended in small files, each written by a rename; so a kill at any moment loses what is in flight
and nothing else. Several processes write into one folder, each under its own name, and read each other's files when
they start.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from autolora.common.files import read_json, replacing, write_json

Found = dict[tuple[str, int], Tensor | None]  # (image id, attempt) -> the adversarial image, or None
NETWORK = ("weights", "logits", "slopes")  # what tells it
ROUNDING = {"logits": 1e-4, "slopes": 1e-2, "pixels": 1e-9}  # of the largest


class Journal:
    def __init__(self, folder: Path | None, process: int = 0, batch: int = 64, seconds: float = 5.0) -> None:
        self.folder, self.process, self.batch, self.seconds = folder, process, batch, seconds
        self.pending: list[tuple[str, int, Tensor | None]] = []
        self.written = time.monotonic()
        self.files: dict[str, int] = {}  # attack and process -> how many there are

    def claim(self, determines: dict, measured: Mapping[str, Tensor]) -> None:
        """The folder belongs to exactly this evaluation: no other, and none of another network, goes on from it.

        What is `measured` may differ by rounding, as machines do.
        """
        self._claim(determines | {name: value.double().cpu().tolist() for name, value in measured.items()})

    def first_logits(self, logits: Tensor) -> Tensor:
        """Those of the first life, for a network that answers at random: all lives agree on which images are right."""
        if self.folder is None:
            return logits
        path = self.folder / "logits.npy"
        if not path.exists():
            with replacing(path) as part, open(part, "wb") as file:
                np.save(file, logits.cpu().numpy())
        return torch.from_numpy(np.load(path)).to(logits.device)

    def _claim(self, determines: dict) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "run.json"
        if not path.exists():
            return write_json(path, determines)
        known = read_json(path)
        for key, value in determines.items():
            if known.get(key) != value and not (key in ROUNDING and _close(known.get(key), value, ROUNDING[key])):
                what = "the network" if key in NETWORK else f"{key} ({known.get(key)!r}, now {value!r})"
                raise ValueError(
                    f"{self.folder} holds the progress of another evaluation, which differs in {what}: "
                    "give another folder, or remove this one"
                )

    def read(self, attack: str) -> Found:
        """A file that a power cut has left empty counts as none: what it held is found again."""
        found: Found = {}
        for path in sorted(self.folder.glob(f"{attack}.*.npz")) if self.folder else []:
            with suppress(EOFError, BadZipFile, ValueError), np.load(path) as data:
                points = iter(torch.from_numpy(data["adversarial"]))
                jobs = zip(data["ids"].tolist(), data["attempts"].tolist(), data["found"].tolist())
                for image, attempt, broken in jobs:
                    found[image.decode(), attempt] = next(points) if broken else None
        return found

    def add(self, attack: str, image: str, attempt: int, adversarial: Tensor | None) -> None:
        self.pending.append((image, attempt, adversarial))
        if len(self.pending) >= self.batch or time.monotonic() - self.written > self.seconds:
            self.flush(attack)

    def flush(self, attack: str) -> None:
        pending, self.pending, self.written = self.pending, [], time.monotonic()
        if self.folder is None or not pending:
            return
        ids, attempts, points = zip(*pending)
        broken = [p.numpy() for p in points if p is not None]
        name = f"{attack}.{self.process}"
        if name not in self.files:
            self.files[name] = len(list(self.folder.glob(f"{name}.*.npz")))
        with replacing(self.folder / f"{name}.{self.files[name]:06d}.npz") as part, open(part, "wb") as file:
            np.savez(
                file,
                ids=np.array([i.encode() for i in ids]),
                attempts=np.array(attempts),
                found=np.array([p is not None for p in points]),
                adversarial=np.stack(broken) if broken else np.zeros((0,), np.float32),
            )
        self.files[name] += 1


def _close(known: list | None, now: list, share: float) -> bool:
    before, after = np.asarray(known if known is not None else []), np.asarray(now)
    return before.shape == after.shape and bool(np.abs(before - after).max() <= share * np.abs(before).max())
