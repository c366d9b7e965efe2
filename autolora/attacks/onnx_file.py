"""How robust the file itself is: parity with torch, stored adversarial examples replayed, Square through onnxruntime.

Every function takes `answer`, a callable from float32 [n,3,h,w] in [0,1] to logits: what is measured is the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autolora.attacks.apgd import APGD, cross_entropy, targeted_dlr
from autolora.attacks.engine.journal import Journal
from autolora.attacks.engine.network import Network
from autolora.attacks.engine.prepare import likely
from autolora.attacks.engine.slots import Slots
from autolora.attacks.square import SquareL2, SquareLinf
from autolora.data.images import TestImages
from autolora.export.conversion import noise, torch_logits
from autolora.threat import Threat

Answer = Callable[[np.ndarray], np.ndarray]
Answers = Callable[[Tensor], Tensor]
NAME = "square-file"  # part of the key of its draws: evaluate's Square has already failed with those of "square"
BATCH, QUERIES, EVERY = 256, 5000, 50
ASCENT, TARGETS = 100, 9  # steps of APGD, and classes that it aims at
STEPS = QUERIES + 1  # of one image that is not broken: the start, and the queries
SQUARE = {"linf": SquareLinf, "l2": SquareL2}


def parity(
    model: nn.Module,
    answer: Callable[[np.ndarray, int], np.ndarray],  # images, batch size
    parts: Mapping[str, np.ndarray],  # name -> float32 [n,3,h,w]: clean, adversarial
    batches: tuple[int, ...] = (1, 3, 7, 256),
) -> dict[str, Any]:
    """The file against torch, in logits and in labels, at every batch size; the last is at most all images."""
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
            row[name] = _two_digits(apart(answered, expected))
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


def apart(answered: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; one that is a number on one side alone is the largest there is."""
    both = np.isnan(answered) & np.isnan(expected)
    return float(np.nan_to_num(np.abs(np.where(both, 0, answered - expected)), nan=np.inf).max())


def _two_digits(value: float) -> float:
    """A difference of kernels is known by its size; further digits change with the number of threads."""
    return float(f"{value:.1e}")


class Replayed(NamedTuple):
    clean: np.ndarray  # bool [n]: right on the image
    robust: np.ndarray  # and on its stored adversarial example


def replay(answer: Answer, clean: np.ndarray, adversarial: np.ndarray, labels: np.ndarray) -> Replayed:
    """What is right when the stored adversarial examples are shown to the file."""
    right = _right(answer(clean), labels)
    return Replayed(right, right & _right(answer(adversarial), labels))


def _right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An answer that is NaN, of which argmax makes a class, is none."""
    return (scores.argmax(1) == labels) & ~np.isnan(scores).any(1)


def square(
    answer: Answer,
    images: TestImages,  # that stood the replay
    threat: Threat,
    *,
    seed: int,
    queries: int = QUERIES,
    progress: Path | None = None,
    tick: Callable[[int], object] = lambda queries: None,
) -> np.ndarray:
    """bool [n]: which images are still right after Square, with draws of its own, from the file's scores alone.

    `progress` names a folder in which a killed run goes on; `tick` hears how many queries are done, or not needed.
    """
    network = Network(lambda t: torch.from_numpy(answer(t.numpy())), min(BATCH, max(len(images), 1)))
    attack = SQUARE[threat.norm](network, threat, queries)
    slots = Slots(attack, images, _no_targets(images), name=NAME, seed=seed, batch=network.batch, every=EVERY)
    return _survivors(slots, Journal(progress, batch=network.batch), tick)


def white_box(
    copy: Answers,
    answer: Answer,
    images: TestImages,
    threat: Threat,
    *,
    seed: int,
    tick: Callable[[int], object] = lambda steps: None,
) -> dict[str, np.ndarray]:
    """Attack -> bool [n], which images are right after it: APGD-CE, then APGD-T on what is left.

    The gradients are those of `copy`, its torch copy, and the logits are the file's: a step is judged, and a success
    counted, on the file alone; the copy only says where to go.
    """

    def logits(points: Tensor) -> Tensor:
        soft = copy(points)
        return soft + (torch.from_numpy(answer(points.detach().numpy())) - soft).detach()

    network = Network(logits, min(64, max(len(images), 1)))
    right, after = np.ones(len(images), bool), {}
    for name, (loss, targets) in _losses(answer, images).items():
        left = np.flatnonzero(right)
        attack = APGD(network, threat, loss, steps=ASCENT)
        said = f"white-box {name}"
        slots = Slots(attack, images.only(left), targets[left], name=said, seed=seed, batch=network.batch)
        right[left] = _survivors(slots, Journal(None), tick)
        after[name] = right.copy()
    return after


def _losses(answer: Answer, images: TestImages) -> dict[str, tuple[Callable, Tensor]]:
    """With the classes to aim at [n,attempts]; the targeted loss needs four classes."""
    found: dict[str, tuple[Callable, Tensor]] = {"APGD-CE": (cross_entropy, _no_targets(images))}
    if len(images) and (scores := torch.from_numpy(answer(images.floats))).shape[1] >= 4:
        found["APGD-T"] = (targeted_dlr, likely(scores, images.labels())[:, :TARGETS])
    return found


def _no_targets(images: TestImages) -> Tensor:
    return torch.zeros(len(images), 1, dtype=torch.long)


def _survivors(slots: Slots, log: Journal, tick: Callable[[int], object]) -> np.ndarray:
    """Run one attack, at each of its targets, on every image that the log does not know yet."""
    ids, attempts = slots.images.ids, slots.targets.shape[1]
    known = log.read(slots.name)
    broken = {name for (name, _), point in known.items() if point is not None}
    tick(len(known) * slots.attack.rounds)

    def finish(job: tuple[int, int], point: Tensor | None) -> None:
        if point is not None:
            broken.add(ids[job[0]])
        log.add(slots.name, ids[job[0]], job[1], point)

    def heard(done: int, saved: int) -> None:
        tick(done + saved)

    jobs = [(i, k) for i in range(len(ids)) for k in range(attempts)]
    jobs = [(i, k) for i, k in jobs if ids[i] not in broken and (ids[i], k) not in known]
    if jobs:
        slots.run(jobs, finish, heard)
    log.flush(slots.name)
    return np.array([name not in broken for name in ids], bool)
