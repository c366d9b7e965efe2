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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from autolora.attacks import checks as diagnostics
from autolora.attacks.engine.fast_copies import Copies, quick_copies
from autolora.attacks.engine.network import Averaged, Network, from_session, predicted
from autolora.attacks.engine.onnx_network import InOnnxruntime
from autolora.attacks.engine.prepare import at_rest, default_batch, device_of, full_precision, likely, prepared
from autolora.attacks.engine.progress import Progress
from autolora.attacks.engine.slots import Images, Slots
from autolora.attacks.report import AttackResult, Report
from autolora.attacks.versions import SAMPLES, SQUARES, VERSIONS, Step, plan_of
from autolora.common import distributed
from autolora.common.files import weights_sha256
from autolora.common.malloc import heap_kept, heap_returned
from autolora.threat import Threat

PRECISIONS = ("full", "fast")
Done = dict[tuple[int, int], Tensor | None]  # (image, rank) -> the adversarial image, or None
AGAIN = "-again"  # in the names of progress files: what was attacked again on the network itself


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

    `precision="fast"` attacks quicker copies of the network (batch norm folded, on a CPU in onnxruntime; in bfloat16
    where that is faster, but for the targeted APGD, Square and whatever comes last), looks at each success again with
    the network itself in float32, and attacks it where only a copy was fooled.
    """
    for name, value, allowed in (("version", version, VERSIONS), ("precision", precision, PRECISIONS)):
        if value not in allowed:
            raise ValueError(f"evaluate.{name} is {value!r}: expected one of {', '.join(allowed)}")
    device = device_of(model, torch.as_tensor(x))
    x, y, names = prepared(x, y, ids)
    diagnostics.require([diagnostics.evaluating(model), diagnostics.weights_in_float32(model)])
    buffers = diagnostics.buffers_hash(model)
    with at_rest(model), full_precision(), heap_kept():
        network = Network(model, batch_size or default_batch(device, model, x[:1].to(device)))
        copies = Copies(network, network)
        if precision == "fast":
            copies = Copies(*(Network(c, network.batch) for c in quick_copies(model, x[:2].to(device))))
        randomised = version == "rand"
        judge = Averaged(model, network.batch, SAMPLES) if randomised else network
        before = diagnostics.before(network, x.to(device), y.to(device), names, threat, seed, randomised)
        diagnostics.require(before)
        plan = partial(plan_of, version, threat.norm)
        report = _evaluate(network, copies, plan, x, y, names, threat, version, seed, progress, show, device)
        del copies  # with what their sessions hold
        heap_returned()
        if randomised:  # one pass would say something else each time
            report.fooled = distributed.of_the_first(predicted(judge.all_logits(report.adversarial, device)).cpu())
        works = diagnostics.attack_works(judge, x.to(device), report, randomised)
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
    device = device_of(answers, torch.as_tensor(x))
    x, y, names = prepared(x, y, ids)
    diagnostics.require([diagnostics.evaluating(answers)])
    with at_rest(answers), full_precision(), heap_kept():
        network = Network(answers, batch_size or default_batch(device, answers, x[:1].to(device)))
        buffers = diagnostics.buffers_hash(answers)
        before = diagnostics.before(network, x.to(device), y.to(device), names, threat, seed, False, gradients=False)
        diagnostics.require(before)
        step = Step("square", partial(SQUARES[threat.norm], queries=queries), every=50)
        plan = partial(_only, step)
        report = _evaluate(
            network,
            Copies(network, network),
            plan,
            x,
            y,
            names,
            threat,
            "square",
            seed,
            progress,
            show,
            device,
        )
        unmoved = diagnostics.buffers_unmoved(answers, buffers)
        report.checks = diagnostics.ordered([*before, unmoved, *diagnostics.after(report, x)])
    diagnostics.require(report.checks)
    return report


def _only(step: Step, classes: int) -> tuple[list[Step], str | None]:
    return [step], "Square alone"


def _evaluate(
    network: Network,
    copies: Copies[Network],
    plan: Callable[[int], tuple[list[Step], str | None]],
    x: Tensor,
    y: Tensor,
    ids: list[str],
    threat: Threat,
    version: str,
    seed: int,
    folder: str | Path | None,
    show: bool,
    device: torch.device,
) -> Report:
    log = Progress(None if folder is None else Path(folder), distributed.rank(), network.batch)
    logits = network.all_logits(x, device)
    steps, deviation = plan(logits.shape[1])
    runtime = _runtime(copies)
    logits = _claimed(logits, steps, network, copies.half, runtime, x, y, ids, threat, version, seed, log)
    images = Images(x.to(device), y.to(device), likely(logits, y.to(device)), ids)
    answer = predicted(logits).cpu()
    report = Report(
        threat=threat,
        version=version,
        deviation=deviation,
        seed=seed,
        ids=ids,
        y=y,
        clean=answer == y,
        robust=answer == y,
        predicted=answer,
        adversarial=x.clone(),
        fooled=answer,
        attacks=[],
        precision="float32" if copies.half is network else "fast",
        device=device.type,
        versions={"torch": torch.__version__.split("+")[0], "numpy": np.__version__} | runtime,
    )
    for step in steps:
        heap_returned()
        _run(step, getattr(copies, step.copy), network, threat, images, report, log, show)
    report.fooled = predicted(network.all_logits(report.adversarial, device)).cpu()
    return report


def _runtime(copies: Copies[Network]) -> dict[str, str]:
    """What else computes the number: a version that rounds otherwise does not go on from this one's progress."""
    model = copies.full.model
    return {"onnxruntime": model.version} if isinstance(model, InOnnxruntime) and model.version else {}


def _claimed(
    logits: Tensor,
    steps: list[Step],
    network: Network,
    quick: Network,
    runtime: dict[str, str],
    x: Tensor,
    y: Tensor,
    ids: list[str],
    threat: Threat,
    version: str,
    seed: int,
    log: Progress,
) -> Tensor:
    """The progress folder is claimed; logits of the images themselves, the same in all processes and lives."""
    determines = _determines(ids, x, y, threat, version, seed, network, quick)
    determines["steps"] = [[step.name, step.ranks, step.attack(network, threat).rounds] for step in steps]
    determines |= {"runtime": runtime} if runtime else {}
    if version != "rand":
        few = sorted(range(len(ids)), key=ids.__getitem__)[:8]
        measured = {"logits": logits[few]}
        if any(step.name != "square" for step in steps):  # the same logits may come with other gradients
            measured["slopes"] = _slopes(network, x[few].to(logits.device), y[few].to(logits.device))
        log.claim(determines, **measured)
        return logits
    if distributed.rank() == 0:
        logits = log.claim_at_random(determines, logits)
    return distributed.of_the_first(logits.cpu()).to(logits.device)


def _slopes(network: Network, x: Tensor, y: Tensor) -> Tensor:
    """Four numbers of each image that tell its gradient's direction: [n,4]."""
    _, _, g = network.gradient(x, lambda z, rows: F.cross_entropy(z, y[rows], reduction="none"))
    unit = F.normalize(g.flatten(1) / g.flatten(1).abs().amax(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny))
    signs = torch.randint(0, 2, (unit.shape[1], 4), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    return unit @ signs.to(unit.device)


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
    """One attack on what stands; the report's flags and images are brought up to date.

    Where a copy's first success on an image is none for the network, nothing that the copy found there counts, and the
    network itself is attacked: which of the image's later ranks had been tried by then must make no difference.
    """
    begin, clock = time.perf_counter(), time.process_time()
    spent = network.forwards + (quick.forwards if quick is not network else 0)
    standing = report.robust.nonzero().flatten().tolist()
    mine = standing[distributed.rank() :: distributed.world()]
    done = _known(step.name, images, mine, log)
    again = _known(f"{step.name}{AGAIN}", images, mine, log)
    doubtful = _sweep(step, step.name, quick, network, threat, images, mine, done, report.seed, log, show)
    if doubtful:
        done = {job: point for job, point in done.items() if job[0] not in doubtful}
        again = {job: point for job, point in again.items() if job[0] in doubtful}
        _sweep(step, f"{step.name}{AGAIN}", network, network, threat, images, doubtful, again, report.seed, log, show)
        done |= again
    done = distributed.gathered(done)
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
            forwards=sum(distributed.gathered({distributed.rank(): took}).values()),
        )
    )


def _known(name: str, images: Images, mine: list[int], log: Progress) -> Done:
    distributed.wait()
    known = log.read(name)
    distributed.wait()
    where = {images.ids[i]: i for i in mine}
    return {(where[name], rank): point for (name, rank), point in known.items() if name in where}


def _sweep(
    step: Step,
    name: str,
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
    """Attack these images, and log it under `name`; returns those whose first success is one on the quick copy only."""
    attack = step.attack(quick, threat)
    slots = Slots(attack, images, step.name, seed, quick.batch, step.every)
    for image, rank in [job for job, point in done.items() if point is not None]:
        slots.broken[image] = min(rank, slots.broken.get(image, rank))
    jobs = [(image, rank) for rank in range(step.ranks) for image in mine if (image, rank) not in done]
    claimed: dict[tuple[int, int], Tensor] = {}
    unseen: dict[int, int] = {}  # image -> the lowest rank whose success is none for the network

    def settle() -> None:
        """Successes of the quick copy, seen by the network itself."""
        if claimed:
            found = predicted(network.all_logits(torch.stack(list(claimed.values())), images.x.device))
            for (job, point), label in zip(list(claimed.items()), found.tolist()):
                if label != images.y[job[0]]:
                    keep(job, point)
                else:
                    unseen[job[0]] = min(job[1], unseen.get(job[0], job[1]))
            claimed.clear()

    def keep(job: tuple[int, int], point: Tensor | None) -> None:
        done[job] = point
        log.add(name, images.ids[job[0]], job[1], point)

    def finish(job: tuple[int, int], point: Tensor | None) -> None:
        if point is None or quick is network:
            return keep(job, point)
        claimed[job] = point
        if len(claimed) >= network.batch:
            settle()

    with _bar(step.name, len(jobs) * attack.rounds, len(mine), slots, show) as tick:
        slots.run(jobs, finish, tick, lambda: log.flush(name))
    settle()
    log.flush(name)
    return sorted(
        image for image, rank in unseen.items() if not any(done.get((image, r)) is not None for r in range(rank))
    )


@contextmanager
def _bar(name: str, steps: int, standing: int, slots: Slots, show: bool) -> Iterator[Callable[[int, int], None]]:
    """Images standing and time left; steps that prove unnecessary leave the total."""
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
    hidden = None if show and steps and distributed.rank() == 0 else True

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
    ids: list[str], x: Tensor, y: Tensor, threat: Threat, version: str, seed: int, network: Network, quick: Network
) -> dict[str, Any]:
    """The network is told by its weights where it has some, and beyond them by what is measured on it."""
    pixels = (hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in x)
    named = sorted(zip(ids, pixels, y.tolist()))
    weights = network.model.state_dict() if isinstance(network.model, nn.Module) else {}
    return {
        "weights": weights_sha256({name: t for name, t in weights.items() if isinstance(t, Tensor)}),
        "threat": str(threat),
        "eps": threat.eps,
        "version": version,
        "seed": seed,
        "batch_size": network.batch,
        "precision": "full" if quick is network else "fast",
        "images": hashlib.sha256(repr(named).encode()).hexdigest(),
    }
