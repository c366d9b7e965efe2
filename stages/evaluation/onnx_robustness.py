"""How robust one exported file is: shown the stored adversarial examples, then attacked itself through onnxruntime.

    found = measure(path, examples, threat, seed=0, limit=100, work=folder);  found.robust

Every file has its own numbers. Attacks run on at most `limit` of the images that are right after the replay, drawn by
their ids (hashes, so a fair draw); `robust` is the share that is right after the replay times the share of those that
is right after the attacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from autolora.attacks.onnx_file import ASCENT, QUERIES, STEPS, TARGETS, Answer, Replayed, replay, square, white_box
from autolora.common.files import file_sha256
from autolora.common.progress import bar
from autolora.common.statistics import wilson
from autolora.data.examples import Examples
from autolora.export.runtime import best_device, logits, open_session
from autolora.export.torch_copy import TorchCopy
from autolora.threat import Threat


class FileRobustness(NamedTuple):
    """What was found out about one file."""

    replayed: Replayed
    rows: np.ndarray  # the images that were attacked
    right: np.ndarray  # bool, one for each of these: still, after the attacks
    record: dict[str, Any]

    @property
    def clean(self) -> float:
        return float(self.replayed.clean.mean())

    @property
    def robust(self) -> float:
        return round(float(self.replayed.robust.mean()) * share(self.right), 6)


def share(right: np.ndarray) -> float:
    return float(right.mean()) if len(right) else 1.0


def answers(path: Path) -> Answer:
    return partial(logits, open_session(path, best_device(), torch.get_num_threads(), beside_torch=True))


def measure(path: Path, examples: Examples, threat: Threat, seed: int, limit: int, work: Path) -> FileRobustness:
    """Replay, then Square with draws that `evaluate` did not use."""
    answer, images = answers(path), examples.images
    replayed = replay(answer, images.floats, examples.adversarial, images.y)
    robust = np.flatnonzero(replayed.robust)
    rows = robust[np.argsort(np.array(images.ids)[robust])][:limit]
    kept = work / f"square-{path.stem}-{file_sha256(path)[:16]}"  # what was found out about exactly this file
    with _bar(f"export: Square on {path.name}", len(rows) * STEPS) as tick:
        right = square(answer, images.only(rows), threat, seed=seed, progress=kept, tick=tick)
    record = {
        "replay": {
            "n": len(images),
            "clean_accuracy": round(float(replayed.clean.mean()), 6),
            "robust_accuracy": round(float(replayed.robust.mean()), 6),
            "no_longer_fooled": int((examples.found & replayed.robust).sum()),
        },
        "square_onnxruntime": _attack(replayed, right) | {"queries": QUERIES},
    }
    return FileRobustness(replayed, rows, right, record)


def with_gradients(path: Path, before: FileRobustness, examples: Examples, threat: Threat, seed: int) -> FileRobustness:
    """APGD-CE and APGD-T along the gradients of the file's torch copy, on what Square has left."""
    rows = before.rows[before.right]
    images = examples.images.only(rows)
    with _bar(f"export: APGD on {path.name}", len(rows) * (ASCENT + 1) * (1 + TARGETS)) as tick:
        after = white_box(TorchCopy(path), answers(path), images, threat, seed=seed, tick=tick)
    right = before.right.copy()
    right[before.right] = list(after.values())[-1]
    left = {name: int(found.sum()) for name, found in after.items()}
    broken = len(rows) - min(left.values())
    record = before.record | {"white_box": {"n": len(rows), "standing_after": left, "broken": broken}}
    return before._replace(right=right, record=record)


def _attack(replayed: Replayed, right: np.ndarray) -> dict[str, Any]:
    return {
        "n": len(right),
        "of": int(replayed.robust.sum()),
        "broken": int((~right).sum()),
        "standing_ci95": [round(bound, 6) for bound in wilson(int(right.sum()), len(right))],
        "robust_accuracy": round(float(replayed.robust.mean()) * share(right), 6),
    }


@contextmanager
def _bar(name: str, total: int) -> Iterator[Any]:
    with bar(total, name) as shown:
        yield shown.update
