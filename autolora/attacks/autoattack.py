"""AutoAttack (Croce & Hein, 2020): the accuracy that stands after four attacks, one after another.

    report = autoattack(model, x, y, Threat("linf", "8/255"))
    report.robust_accuracy, report.robust, report.attacks, report.adversarial, report.warnings, report.verdict

`model` is any callable from [0,1] pixels to logits. Random draws depend on (seed, attack, image id) alone and every
forward has one shape, so no image's flag depends on order, grouping, resume point or number of processes. `progress`
names a folder in which a killed run goes on. Under torch.distributed the images are shared out, and every process
gets the whole report.
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
from autolora.attacks.network import Averaged, Network, from_session
from autolora.attacks.prepare import at_rest, default_batch, device_of, full_precision, likely, prepared, quick_copies
from autolora.attacks.progress import Progress
from autolora.attacks.report import AttackResult, Report
from autolora.attacks.slots import Attack, Images, Slots
from autolora.attacks.square import SquareL1, SquareL2, SquareLinf
from autolora.attacks.workers import gathered, of_the_first, wait, worker, workers
from autolora.threat import Threat

VERSIONS = ("standard", "plus", "rand", "fast")
PRECISIONS = ("full", "fast")
SQUARES = {"linf": SquareLinf, "l2": SquareL2, "l1": SquareL1}
Done = dict[tuple[int, int], Tensor | None]  # (image, rank) -> the adversarial image, or None
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
    precision: str = "full",
    show: bool = True,
) -> Report:
    """x: [n,c,h,w], float in [0,1] or uint8; y: [n]; ids name the images (default: a hash of their pixels).

    `precision="fast"` attacks quicker copies of the network (batch norm folded, channels last; all attacks but the
    last in bfloat16 where the processor has it), looks at each success again with the network itself in float32, and
    attacks it itself where only a copy was fooled.
    """
    for name, value, allowed in (("version", version, VERSIONS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise ValueError(f"evaluate.{name} is {value!r}: expected one of {', '.join(allowed)}")
    x, y, names = prepared(x, y, ids)
    device = device_of(model, x)
    diagnostics.require([diagnostics.evaluating(model)])
    buffers = diagnostics.buffers_hash(model)
    with at_rest(model), full_precision():
        network = Network(model, batch_size or default_batch(device))
        randomised = version == "rand"
        judge = Averaged(model, network.batch, SAMPLES) if randomised else network
        before = diagnostics.before(network, x.to(device), y.to(device), threat, seed, randomised)
        diagnostics.require(before)
        copies = [network, network]
        if precision == "fast":
            copies = [Network(c, network.batch) for c in quick_copies(model, x[:2].to(device))]
        plan = partial(plan_of, version, threat.norm)
        report = _evaluate(network, copies, plan, x, y, names, threat, version, seed, progress, show)
        if randomised:  # one pass would say something else each time
            report.fooled = of_the_first(judge.all_logits(report.adversarial, device).argmax(1).cpu())
        works = diagnostics.attack_works(judge, x.to(device), y.to(device), threat, seed, randomised)
        unmoved = diagnostics.buffers_unmoved(model, buffers)
        report.checks = diagnostics.ordered([*before, unmoved, works, *diagnostics.after(report, x)])
    diagnostics.require(report.checks)
    return report


def black_box(
    model: Callable[[Tensor], Tensor] | Any,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    queries: int = 5000,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    progress: str | Path | None = None,
    batch_size: int | None = None,
    show: bool = True,
) -> Report:
    """Square alone, from scores alone: `model` may also be an onnxruntime session."""
    answers = from_session(model) if hasattr(model, "get_inputs") else model
    x, y, names = prepared(x, y, ids)
    diagnostics.require([diagnostics.evaluating(answers), diagnostics.pixels(x)])
    with at_rest(answers), full_precision():
        network = Network(answers, batch_size or default_batch(device_of(answers, x)))
        step = Step("square", partial(SQUARES[threat.norm], queries=queries), every=50)
        plan = partial(_only, step)
        report = _evaluate(network, [network, network], plan, x, y, names, threat, "square", seed, progress, show)
        report.checks = diagnostics.ordered(diagnostics.after(report, x))
    diagnostics.require(report.checks)
    return report


def _only(step: Step, classes: int) -> tuple[list[Step], str | None]:
    return [step], "Square alone"


def _evaluate(
    network: Network,
    copies: list[Network],
    plan: Callable[[int], tuple[list[Step], str | None]],
    x: Tensor,
    y: Tensor,
    ids: list[str],
    threat: Threat,
    version: str,
    seed: int,
    folder: str | Path | None,
    show: bool,
) -> Report:
    device = device_of(network.model, x)
    log = Progress(None if folder is None else Path(folder), worker(), network.batch)
    quick, last = copies  # the last attack is always in float32
    logits = _clean_logits(network, quick, x, y, ids, threat, version, seed, log)
    steps, deviation = plan(logits.shape[1])
    images = Images(x.to(device), y.to(device), likely(logits, y.to(device)), ids)
    predicted = logits.argmax(1).cpu()
    report = Report(
        threat=threat,
        version=version,
        deviation=deviation,
        seed=seed,
        ids=ids,
        y=y,
        clean=predicted == y,
        robust=predicted == y,
        predicted=predicted,
        adversarial=x.clone(),
        fooled=predicted,
        attacks=[],
        precision="float32" if quick is network else "fast",
        device=device.type,
        versions={"torch": torch.__version__.split("+")[0], "numpy": np.__version__},
    )
    for step in steps:
        _run(step, last if step is steps[-1] else quick, network, threat, images, report, log, show)
    report.fooled = network.all_logits(report.adversarial, device).argmax(1).cpu()
    return report


def _clean_logits(
    network: Network,
    quick: Network,
    x: Tensor,
    y: Tensor,
    ids: list[str],
    threat: Threat,
    version: str,
    seed: int,
    log: Progress,
) -> Tensor:
    """Logits of the images themselves, the same in all processes and lives; and the progress folder is claimed."""
    logits = network.all_logits(x, device_of(network.model, x))
    determines = _determines(ids, y, threat, version, seed, network, quick)
    if version != "rand":
        log.claim(determines, logits)
        return logits
    if worker() == 0:
        logits = log.claim_at_random(determines, logits)
    return of_the_first(logits.cpu()).to(logits.device)


def plan_of(version: str, norm: str, classes: int) -> tuple[list[Step], str | None]:
    """The attacks of a version, and in what they deviate from the standard for so few classes."""
    targets = min(TARGETS, classes - 1)
    gradient = APGDL1 if norm == "l1" else APGD
    apgd_t = Step("apgd-t", partial(gradient, loss=targeted_dlr), min(5, targets) if norm == "l1" else targets)
    fab_t = Step("fab-t", TargetedFAB, targets)
    black_box = Step("square", SQUARES[norm], every=50)
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
    quick: Network,
    network: Network,
    threat: Threat,
    images: Images,
    report: Report,
    log: Progress,
    show: bool,
) -> None:
    """One attack on what stands; the report's flags and images are brought up to date."""
    begin, clock = time.perf_counter(), time.process_time()
    spent = network.forwards + (quick.forwards if quick is not network else 0)
    standing = report.robust.nonzero().flatten().tolist()
    done = _known(step, images, standing, log)
    mine = standing[worker() :: workers()]
    doubtful = _sweep(step, quick, network, threat, images, mine, done, report.seed, log, show)
    if doubtful:
        _sweep(step, network, network, threat, images, doubtful, done, report.seed, log, show)
    done = gathered(done)
    points = {job: point for job, point in done.items() if point is not None}
    for image, rank in sorted(points, reverse=True):  # the lowest rank is written last
        report.robust[image] = False
        report.adversarial[image] = points[image, rank]
    took = network.forwards + (quick.forwards if quick is not network else 0) - spent
    report.attacks.append(
        AttackResult(
            name=step.name,
            robust_accuracy=report.robust_accuracy,
            broken=len(standing) - int(report.robust.sum()),
            seconds=time.perf_counter() - begin,
            processor_seconds=time.process_time() - clock,
            forwards=sum(gathered({worker(): took}).values()),
        )
    )


def _known(step: Step, images: Images, standing: list[int], log: Progress) -> Done:
    wait()
    known = log.read(step.name)
    wait()
    where = {images.ids[i]: i for i in standing}
    return {(where[name], rank): point for (name, rank), point in known.items() if name in where}


def _sweep(
    step: Step,
    quick: Network,
    network: Network,
    threat: Threat,
    images: Images,
    mine: list[int],
    done: Done,
    seed: int,
    log: Progress,
    show: bool,
) -> list[int]:
    """Attack these images; returns those that only the quick copy takes for broken."""
    attack = step.attack(quick, threat)
    slots = Slots(attack, images, step.name, seed, quick.batch, step.every)
    for image, rank in [job for job, point in done.items() if point is not None]:
        slots.broken[image] = min(rank, slots.broken.get(image, rank))
    jobs = [(image, rank) for rank in range(step.ranks) for image in mine if (image, rank) not in done]
    claimed: dict[tuple[int, int], Tensor] = {}
    doubtful: list[int] = []

    def settle() -> None:
        """Successes of the quick copy, seen by the network itself."""
        if claimed:
            found = network.all_logits(torch.stack(list(claimed.values())), images.x.device).argmax(1)
            for (job, point), label in zip(list(claimed.items()), found.tolist()):
                if label != images.y[job[0]]:
                    keep(job, point)
                else:
                    doubtful.append(job[0])
            claimed.clear()

    def keep(job: tuple[int, int], point: Tensor | None) -> None:
        done[job] = point
        log.add(step.name, images.ids[job[0]], job[1], point)

    def finish(job: tuple[int, int], point: Tensor | None) -> None:
        if point is None or quick is network:
            return keep(job, point)
        claimed[job] = point
        if len(claimed) >= network.batch:
            settle()

    with _bar(step.name, len(jobs) * attack.rounds, len(mine), slots, show) as tick:
        slots.run(jobs, finish, tick, lambda: log.flush(step.name))
    settle()
    log.flush(step.name)
    return sorted({image for image in doubtful if not any(done.get((image, r)) is not None for r in range(step.ranks))})


@contextmanager
def _bar(name: str, steps: int, standing: int, slots: Slots, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Images standing and time left; steps that prove unnecessary leave the total."""
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    hidden = None if show and steps and worker() == 0 else True

    def said() -> str:
        return f"{name}: {standing - len(slots.broken)} of {standing} stand"

    bar = tqdm(total=steps, desc=said(), bar_format=shape, disable=hidden)

    def tick(taken: int, saved: int) -> None:
        bar.total -= saved
        bar.set_description_str(said(), refresh=False)
        bar.update(taken)

    with bar:
        yield (lambda taken, saved: None) if bar.disable else tick


def _determines(
    ids: list[str], y: Tensor, threat: Threat, version: str, seed: int, network: Network, quick: Network
) -> dict[str, Any]:
    named = sorted(zip(ids, y.tolist()))
    return {
        "threat": str(threat),
        "eps": threat.eps,
        "version": version,
        "seed": seed,
        "batch_size": network.batch,
        "precision": "full" if quick is network else "fast",
        "images": hashlib.sha256(repr(named).encode()).hexdigest(),
    }
