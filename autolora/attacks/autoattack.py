"""AutoAttack (Croce & Hein, 2020): the accuracy that stands after four attacks, one after another, on what still stands.

    report = autoattack(model, x, y, Threat("linf", "8/255"))
    report.robust_accuracy, report.robust, report.attacks, report.adversarial, report.warnings, report.verdict

`model` is any callable from [0,1] pixels to logits. Random draws depend on (seed, attack, image id) alone and every forward has
one shape, so no image's flag depends on order, grouping, resume point or number of processes. `progress` names a folder in
which a killed run goes on. Under torch.distributed the images are shared out, and every process gets the whole report.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from autolora import diagnostics
from autolora.attacks.apgd import APGD, dlr, targeted_dlr
from autolora.attacks.apgd_l1 import APGDL1
from autolora.attacks.fab import FAB, TargetedFAB
from autolora.attacks.network import Network
from autolora.attacks.prepare import at_rest, default_batch, device_of, full_precision, likely, prepared
from autolora.attacks.progress import Progress
from autolora.attacks.report import AttackResult, Report
from autolora.attacks.slots import Attack, Images, Slots
from autolora.attacks.square import SquareL1, SquareL2, SquareLinf
from autolora.attacks.workers import gathered, wait, worker, workers
from autolora.threat import Threat

VERSIONS = ("standard", "plus", "rand", "fast")
TARGETS, SAMPLES = 9, 20


@dataclass(frozen=True)
class Step:
    """One attack of a version: what to run, and how often per image (targets or restarts)."""

    name: str
    attack: Callable[[Network, Threat], Attack]
    ranks: int = 1
    every: int = 1  # steps between looks at which rows are through


def autoattack(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    version: str = "standard",
    seed: int = 0,
    ids: Sequence[str] | None = None,
    progress: str | Path | None = None,
    batch_size: int | None = None,
    show: bool = True,
) -> Report:
    """x: [n,c,h,w], float in [0,1] or uint8; y: [n]; ids name the images (default: a hash of their pixels)."""
    if version not in VERSIONS:
        raise ValueError(f"evaluate.version is {version!r}: expected one of {', '.join(VERSIONS)}")
    with at_rest(model), full_precision():
        return _evaluate(model, *prepared(x, y, ids), threat, version, seed, progress, batch_size, show)


def _evaluate(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    ids: list[str],
    threat: Threat,
    version: str,
    seed: int,
    folder: str | Path | None,
    batch_size: int | None,
    show: bool,
) -> Report:
    device = device_of(model, x)
    batch = batch_size or default_batch(device)
    network = Network(model, batch)
    before = diagnostics.before(network, x.to(device), y.to(device), threat, seed, version == "rand")
    diagnostics.require(before)
    logits = network.all_logits(x, device)
    plan, deviation = plan_of(version, threat.norm, logits.shape[1])
    images = Images(x.to(device), y.to(device), likely(logits, y.to(device)), ids)
    log = Progress(None if folder is None else Path(folder), worker(), batch)
    log.claim(_determines(images, logits, threat, version, seed, batch))
    predicted = logits.argmax(1).cpu()
    clean = predicted == y
    robust, adversarial, results = clean.clone(), x.clone(), []
    for step in plan:
        result = _run(step, network, threat, images, robust, adversarial, seed, log, show)
        results.append(result)
    fooled = network.all_logits(adversarial, device).argmax(1).cpu()
    report = Report(
        threat=threat,
        version=version,
        deviation=deviation,
        seed=seed,
        ids=ids,
        y=y,
        clean=clean,
        robust=robust,
        predicted=predicted,
        adversarial=adversarial,
        fooled=fooled,
        attacks=results,
        device=device.type,
        versions={"torch": torch.__version__.split("+")[0], "numpy": np.__version__},
    )
    report.checks = before + diagnostics.after(report, x)
    diagnostics.require(report.checks)
    return report


def plan_of(version: str, norm: str, classes: int) -> tuple[list[Step], str | None]:
    """The attacks of a version, and in what they deviate from the standard for so few classes."""
    targets = min(TARGETS, classes - 1)
    gradient, square = {"linf": (APGD, SquareLinf), "l2": (APGD, SquareL2), "l1": (APGDL1, SquareL1)}[norm]
    apgd_t = Step("apgd-t", partial(gradient, loss=targeted_dlr), min(5, targets) if norm == "l1" else targets)
    fab_t = Step("fab-t", TargetedFAB, targets)
    black_box = Step("square", square, every=50)
    steps = {
        "standard": [Step("apgd-ce", gradient, 5 if norm == "l1" else 1), apgd_t, fab_t, black_box],
        "fast": [Step("apgd-ce", gradient), apgd_t],
        "plus": [
            Step("apgd-ce", gradient, 5),
            Step("apgd-dlr", partial(gradient, loss=dlr), 5),
            Step("fab", FAB, 5),
            black_box,
            apgd_t,
            fab_t,
        ],
        "rand": [
            Step("apgd-ce", partial(gradient, samples=SAMPLES)),
            Step("apgd-dlr", partial(gradient, loss=dlr, samples=SAMPLES)),
        ],
    }[version]
    lacking = ["apgd-t"] * (classes < 4) + ["apgd-dlr"] * (classes < 3)
    notes = [f"{s.name} needs more than {classes} classes and is left out" for s in steps if s.name in lacking]
    if targets < TARGETS:
        notes.append(f"{targets} target classes, there are no more")
    if version == "fast":
        notes.append("only APGD-CE and APGD-T")
    return [s for s in steps if s.name not in lacking], "; ".join(notes) or None


def _run(
    step: Step,
    network: Network,
    threat: Threat,
    images: Images,
    robust: Tensor,
    adversarial: Tensor,
    seed: int,
    log: Progress,
    show: bool,
) -> AttackResult:
    """One attack on what stands; `robust` and `adversarial` are brought up to date."""
    begin, spent, standing = time.perf_counter(), network.forwards, robust.nonzero().flatten().tolist()
    wait()
    known = log.read(step.name)
    wait()
    where = {images.ids[i]: i for i in standing}
    done = {(where[name], rank): point for (name, rank), point in known.items() if name in where}
    attack = step.attack(network, threat)
    mine = standing[worker() :: workers()]
    slots = Slots(attack, images, step.name, seed, network.batch, step.every)
    for (image, rank), point in done.items():
        if point is not None:
            slots.broken[image] = min(rank, slots.broken.get(image, rank))
    jobs = [(image, rank) for rank in range(step.ranks) for image in mine if (image, rank) not in done]

    def finish(job: tuple[int, int], point: Tensor | None) -> None:
        done[job] = point
        log.add(step.name, images.ids[job[0]], job[1], point)

    with _bar(step.name, len(jobs) * attack.rounds, len(standing), slots, show) as tick:
        slots.run(jobs, finish, tick)
    log.flush(step.name)
    done = gathered(done)
    points = {job: point for job, point in done.items() if point is not None}
    for image, rank in sorted(points, reverse=True):  # the lowest rank is written last
        robust[image] = False
        adversarial[image] = points[image, rank]
    return AttackResult(
        step.name,
        robust.double().mean().item(),
        len(standing) - int(robust.sum()),
        time.perf_counter() - begin,
        network.forwards - spent,
    )


@contextmanager
def _bar(name: str, steps: int, standing: int, slots: Slots, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Images standing and time left; steps that prove unnecessary leave the total."""
    shape = "{desc}: {postfix} standing {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    bar = tqdm(total=steps, desc=name, bar_format=shape, disable=None if show and worker() == 0 else True)

    def tick(taken: int, saved: int) -> None:
        bar.total -= saved
        bar.set_postfix_str(str(standing - len(slots.broken)), refresh=False)
        bar.update(taken)

    with bar:
        yield (lambda taken, saved: None) if bar.disable else tick


def _determines(images: Images, logits: Tensor, threat: Threat, version: str, seed: int, batch: int) -> dict[str, Any]:
    names = "\n".join(f"{i} {label}" for i, label in sorted(zip(images.ids, images.y.tolist())))
    return {
        "threat": str(threat.as_record()),
        "version": version,
        "seed": seed,
        "batch": batch,
        "images": hashlib.sha256(names.encode()).hexdigest(),
        "pixels": round(images.x.double().sum().item(), 3),
        "logits": float(f"{logits.double().abs().sum().item():.5g}"),
    }
