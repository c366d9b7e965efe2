"""How one exported file stands: shown the stored adversarial examples, then attacked itself through onnxruntime.

    stands = measure(path, examples, threat, seed=0, limit=100, work=folder);  stands.robust

Every file has its own numbers. Attacks run on at most `limit` of the images that stood the replay, drawn by their ids
(hashes, so a fair draw); `robust` is the share that stood the replay times the share of those that stood the attacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from autolora.attacks.onnx_file import ASCENT, QUERIES, STEPS, TARGETS, Answer, Replayed, replay, square, white_box
from autolora.common.files import file_sha256
from autolora.common.statistics import wilson
from autolora.export.runtime import logits, open_session
from autolora.export.straight_through import StraightThrough
from autolora.threat import Threat


class Examples(NamedTuple):
    """What `evaluate` left: the images that were attacked, and what it found."""

    x: np.ndarray  # float32 [n,3,h,w]
    adversarial: np.ndarray
    y: np.ndarray
    ids: np.ndarray  # of str
    found: np.ndarray

    def only(self, rows: np.ndarray) -> Examples:
        return Examples(*(part[rows] for part in self))


class Standing(NamedTuple):
    seen: Replayed
    rows: np.ndarray  # the images that were attacked
    stood: np.ndarray  # bool, one for each of these
    record: dict[str, Any]

    @property
    def clean(self) -> float:
        return float(self.seen.clean.mean())

    @property
    def robust(self) -> float:
        return round(float(self.seen.robust.mean()) * share(self.stood), 6)


def share(stood: np.ndarray) -> float:
    return float(stood.mean()) if len(stood) else 1.0


def read_examples(path: str | Path) -> Examples:
    with np.load(path) as data:
        x = data["x"].astype(np.float32) / 255
        return Examples(x, data["adversarial"], data["y"], data["ids"].astype(str), data["found"])


def device() -> str:
    return "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"


def answers(path: Path) -> Answer:
    return partial(logits, open_session(path, device(), torch.get_num_threads(), beside_torch=True))


def measure(path: Path, examples: Examples, threat: Threat, seed: int, limit: int, work: Path) -> Standing:
    """Replay, then Square with draws that `evaluate` did not use."""
    answer = answers(path)
    seen = replay(answer, examples.x, examples.adversarial, examples.y)
    standing = np.flatnonzero(seen.robust)
    rows = standing[np.argsort(examples.ids[standing])][:limit]
    x, _, y, ids, _ = examples.only(rows)
    kept = work / f"square-{path.stem}-{file_sha256(path)[:16]}"  # what was found out about exactly this file
    with _bar(f"export: Square on {path.name}", len(rows) * STEPS) as tick:
        stood = square(answer, x, y, list(ids), threat, seed, progress=kept, tick=tick)
    record = {
        "replay": {
            "n": len(examples.y),
            "clean_accuracy": round(float(seen.clean.mean()), 6),
            "robust_accuracy": round(float(seen.robust.mean()), 6),
            "no_longer_fooled": int((examples.found & seen.robust).sum()),
        },
        "square_onnxruntime": _attack(seen, stood) | {"queries": QUERIES},
    }
    return Standing(seen, rows, stood, record)


def with_gradients(path: Path, before: Standing, examples: Examples, threat: Threat, seed: int) -> Standing:
    """APGD-CE and APGD-T along the gradients of the file's straight-through copy, on what stood Square."""
    rows = before.rows[before.stood]
    x, _, y, ids, _ = examples.only(rows)
    with _bar(f"export: APGD on {path.name}", len(rows) * (ASCENT + 1) * (1 + TARGETS)) as tick:
        after = white_box(StraightThrough(path), answers(path), x, y, list(ids), threat, seed, tick=tick)
    stood = before.stood.copy()
    stood[before.stood] = list(after.values())[-1]
    left = {name: int(found.sum()) for name, found in after.items()}
    broken = len(rows) - min(left.values())
    record = before.record | {"white_box": {"n": len(rows), "standing_after": left, "broken": broken}}
    return before._replace(stood=stood, record=record)


def _attack(seen: Replayed, stood: np.ndarray) -> dict[str, Any]:
    return {
        "n": len(stood),
        "of": int(seen.robust.sum()),
        "broken": int((~stood).sum()),
        "standing_ci95": [round(bound, 6) for bound in wilson(int(stood.sum()), len(stood))],
        "robust_accuracy": round(float(seen.robust.mean()) * share(stood), 6),
    }


@contextmanager
def _bar(name: str, total: int) -> Iterator[Any]:
    with tqdm(total=total, desc=name, unit="step", mininterval=1) as bar:
        yield bar.update
