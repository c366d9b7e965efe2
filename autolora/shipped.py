"""How the file itself stands: parity with torch, the stored adversarial examples replayed, Square through onnxruntime.

Every function takes `answer`, a callable from float32 [n,3,h,w] in [0,1] to logits: what is measured is the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autolora.attacks.apgd import APGD
from autolora.attacks.network import Network
from autolora.attacks.progress import Progress
from autolora.attacks.slots import Images, Slots
from autolora.attacks.square import SquareL2, SquareLinf
from autolora.export import noise, torch_logits
from autolora.threat import Threat

Answer = Callable[[np.ndarray], np.ndarray]
Answers = Callable[[Tensor], Tensor]
NAME = "square-file"  # part of the key of its draws: evaluate's Square has already failed with those of "square"
BATCH, QUERIES, EVERY = 256, 5000, 50
ASCENT = 100  # steps of APGD
STEPS = -(-(QUERIES + 1) // EVERY) * EVERY  # of one image that stands: rows are looked at every 50 queries
SQUARE = {"linf": SquareLinf, "l2": SquareL2}


def parity(
    model: nn.Module,
    answer: Callable[[np.ndarray, int], np.ndarray],  # images, batch size
    parts: Mapping[str, np.ndarray],  # name -> float32 [n,3,h,w]: clean, adversarial
    batches: tuple[int, ...] = (1, 3, 7, 256),
) -> dict[str, Any]:
    """The file against torch, in logits and in labels, at every batch size; the last shrinks to `n`."""
    largest = min(batches[-1], max(len(images) for images in parts.values()))
    sizes = [batch for batch in batches[:-1] if batch < largest] + [largest]
    rows: list[dict[str, Any]] = [{"batch": batch} for batch in sizes]
    flips = beyond = 0
    bound = 0.0
    for name, images in parts.items():
        expected = torch_logits(model, images, largest)
        bound = max(bound, noise(expected))
        top = np.sort(expected, axis=1)
        margin = top[:, -1] - top[:, -2] if expected.shape[1] > 1 else np.full(len(top), np.inf)
        flipped = np.zeros(len(images), bool)
        for row in rows:
            answered = answer(images, row["batch"])
            row[name] = _two_digits(np.abs(answered - expected).max())
            flipped |= answered.argmax(1) != expected.argmax(1)
        flips += int(flipped.sum())
        beyond += int((flipped & (margin > 2 * noise(expected))).sum())
    return {
        "n": {name: len(images) for name, images in parts.items()},
        "max_difference": max(row[name] for row in rows for name in parts),
        "noise": _two_digits(bound),
        "label_flips": flips,
        "label_flips_beyond_noise": beyond,
        "batches": rows,
    }


def _two_digits(value: float) -> float:
    """A difference of kernels is known by its size; further digits change with the number of threads."""
    return float(f"{value:.1e}")


class Replayed(NamedTuple):
    clean: np.ndarray  # bool [n]: right on the image
    robust: np.ndarray  # and on its stored adversarial example


def replay(answer: Answer, clean: np.ndarray, adversarial: np.ndarray, labels: np.ndarray) -> Replayed:
    """What stands when the stored adversarial examples are shown to the file."""
    right = answer(clean).argmax(1) == labels
    return Replayed(right, right & (answer(adversarial).argmax(1) == labels))


def square(
    answer: Answer,
    x: np.ndarray,  # float32 [n,3,h,w]: images that stood
    y: np.ndarray,
    ids: Sequence[str],
    threat: Threat,
    seed: int,
    queries: int = QUERIES,
    progress: Path | None = None,
    tick: Callable[[int], object] = lambda queries: None,
) -> np.ndarray:
    """bool [n]: which images stand against Square, with draws of its own, from the file's scores alone.

    `progress` names a folder in which a killed run goes on; `tick` hears how many queries are done, or not needed.
    """
    network = Network(lambda t: torch.from_numpy(answer(t.numpy())), min(BATCH, max(len(y), 1)))
    attack = SQUARE[threat.norm](network, threat, queries)
    log = Progress(progress, batch=network.batch)
    return _survivors(Slots(attack, _images(x, y, ids), NAME, seed, network.batch, EVERY), log, tick)


def white_box(
    copy: Answers,
    answer: Answer,
    x: np.ndarray,
    y: np.ndarray,
    ids: Sequence[str],
    threat: Threat,
    seed: int,
    tick: Callable[[int], object] = lambda steps: None,
) -> np.ndarray:
    """bool [n]: which images stand against APGD-CE with the logits of the file and the gradients of its torch copy.

    So a step is judged, and a success counted, on the file alone; the copy only says where to go.
    """

    def logits(points: Tensor) -> Tensor:
        soft = copy(points)
        return soft + (torch.from_numpy(answer(points.detach().numpy())) - soft).detach()

    network = Network(logits, min(64, max(len(y), 1)))
    slots = Slots(APGD(network, threat, steps=ASCENT), _images(x, y, ids), "white-box", seed, network.batch)
    return _survivors(slots, Progress(None), tick)


def _images(x: np.ndarray, y: np.ndarray, ids: Sequence[str]) -> Images:
    return Images(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(len(y), 1, dtype=torch.long), list(ids))


def _survivors(slots: Slots, log: Progress, tick: Callable[[int], object]) -> np.ndarray:
    """Run one attack on every image that the log does not know yet."""
    ids = slots.images.ids
    broken = {name: point is not None for (name, _), point in log.read(slots.name).items()}
    tick(len(broken) * slots.attack.rounds)

    def finish(job: tuple[int, int], point: Tensor | None) -> None:
        broken[ids[job[0]]] = point is not None
        log.add(slots.name, ids[job[0]], 0, point)

    def heard(done: int, saved: int) -> None:
        tick(done + saved)

    if ids:
        slots.run([(i, 0) for i, name in enumerate(ids) if name not in broken], finish, heard)
    log.flush(slots.name)
    return np.array([not broken[name] for name in ids], bool)
