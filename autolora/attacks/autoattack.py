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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from autolora import diagnostics
from autolora.attacks.apgd import APGD, cross_entropy, dlr, targeted_dlr
from autolora.attacks.fab import FAB, TargetedFAB
from autolora.attacks.network import Network
from autolora.attacks.pgd import frozen
from autolora.attacks.progress import Progress
from autolora.attacks.report import AttackResult, Report
from autolora.attacks.slots import Attack, Images, Slots
from autolora.attacks.square import SquareL2, SquareLinf
from autolora.threat import Threat

VERSIONS = ("standard", "plus", "rand", "fast")
TARGETS = 9


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
    with _at_rest(model), _full_precision():
        return _evaluate(model, *_prepared(x, y, ids), threat, version, seed, progress, batch_size, show)


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
    batch = batch_size or (64 if device.type == "cpu" else 512)
    network = Network(model, batch)
    before = diagnostics.before(network, x.to(device), y.to(device), threat, seed, version == "rand")
    diagnostics.require(before)
    logits = network.all_logits(x, device)
    plan, deviation = plan_of(version, threat.norm, logits.shape[1])
    images = Images(x.to(device), y.to(device), _likely(logits, y.to(device)), ids)
    log = Progress(None if folder is None else Path(folder), _worker(), batch)
    log.claim(_determines(images, logits, threat, version, seed, batch))
    predicted = logits.argmax(1).cpu()
    clean = predicted == y
    robust, adversarial, results = clean.clone(), x.clone(), []
    for step in plan:
        result = _run(step, network, threat, images, robust, adversarial, seed, log, show)
        results.append(result)
    report = Report(
        threat, version, deviation, seed, ids, y, clean, robust, predicted, adversarial, results,
        device=str(device.type), versions={"torch": torch.__version__.split("+")[0], "numpy": np.__version__},
    )  # fmt: skip
    report.checks = before + diagnostics.after(network, report, x)
    diagnostics.require(report.checks)
    return report


def plan_of(version: str, norm: str, classes: int) -> tuple[list[Step], str | None]:
    """The attacks of a version, and in what they deviate from it for so few classes."""
    targets = min(TARGETS, classes - 1)
    square = {"linf": SquareLinf, "l2": SquareL2}[norm]
    apgd_t = Step("apgd-t", lambda n, t: APGD(n, t, targeted_dlr), targets)
    fab_t = Step("fab-t", TargetedFAB, targets)
    black_box = Step("square", square, every=50)
    steps = {
        "standard": [Step("apgd-ce", APGD), apgd_t, fab_t, black_box],
        "fast": [Step("apgd-ce", APGD), apgd_t],
        "plus": [
            Step("apgd-ce", APGD, 5),
            Step("apgd-dlr", lambda n, t: APGD(n, t, dlr), 5),
            Step("fab", FAB, 5),
            black_box,
            apgd_t,
            fab_t,
        ],
        "rand": [
            Step("apgd-ce", lambda n, t: APGD(n, t, samples=20)),
            Step("apgd-dlr", lambda n, t: APGD(n, t, dlr, samples=20)),
        ],
    }[version]
    missing = ["apgd-t"] * (classes < 4) + ["apgd-dlr"] * (classes < 3)
    dropped = [step.name for step in steps if step.name in missing]
    notes = [f"{name} needs more than {classes} classes and is left out" for name in dropped]
    if targets < TARGETS and any(step.name in ("apgd-t", "fab-t") for step in steps):
        notes.append(f"{targets} target classes instead of {TARGETS}: there are no more")
    if version == "fast":
        notes.append("only APGD-CE and APGD-T")
    return [step for step in steps if step.name not in missing], "; ".join(notes) or None


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
    _wait()
    known = log.read(step.name)
    _wait()
    where = {images.ids[i]: i for i in standing}
    done = {(where[name], rank): point for (name, rank), point in known.items() if name in where}
    attack = step.attack(network, threat)
    mine = standing[_worker() :: _workers()]
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
    done = _gathered(done)
    for image, rank in sorted((job for job, point in done.items() if point is not None), reverse=True):
        robust[image], adversarial[image] = False, done[image, rank]  # the lowest rank is written last
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
    bar = tqdm(total=steps, desc=name, bar_format=shape, disable=None if show and _worker() == 0 else True)

    def tick(taken: int, saved: int) -> None:
        bar.total -= saved
        bar.set_postfix_str(str(standing - len(slots.broken)), refresh=False)
        bar.update(taken)

    with bar:
        yield (lambda taken, saved: None) if bar.disable else tick


def _prepared(x: Tensor, y: Tensor, ids: Sequence[str] | None) -> tuple[Tensor, Tensor, list[str]]:
    x, y = torch.as_tensor(x), torch.as_tensor(y).long().cpu()
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{len(x)} images and {len(y)} labels: expected as many of each, and at least one")
    x = x.cpu().float().div(255) if x.dtype == torch.uint8 else x.detach().cpu().float()
    names = [str(i) for i in ids] if ids is not None else _content_ids(x)
    if len(set(names)) != len(x):
        raise ValueError(f"{len(set(names))} different ids for {len(x)} images: every image needs one of its own")
    return x, y, names


def _content_ids(x: Tensor) -> list[str]:
    names, seen = [], dict[str, int]()
    for image in x:
        name = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def _likely(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of each image, most likely first: [n,classes-1]."""
    return logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]


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


def device_of(model: Any, x: Tensor) -> torch.device:
    """Where the model lives; where it has no parameters, where the images are."""
    if isinstance(model, nn.Module):
        for tensor in [*model.parameters(), *model.buffers()]:
            return tensor.device
    return x.device


def _at_rest(model: Any) -> Any:
    """Parameters without gradients; whether every module is in eval is for the checks to say."""
    if not isinstance(model, nn.Module):
        return nullcontext()
    diagnostics.require([diagnostics.evaluating(model)])
    return frozen(model)


@contextmanager
def _full_precision() -> Iterator[None]:
    """TF32 off for the length of the attack: the reported number is of float32."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def _workers() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _worker() -> int:
    return dist.get_rank() if _workers() > 1 else 0


def _wait() -> None:
    if _workers() > 1:
        dist.barrier()


def _gathered(done: dict) -> dict:
    if _workers() == 1:
        return done
    parts: list[Any] = [None] * _workers()
    dist.all_gather_object(parts, done)
    return {job: point for part in parts for job, point in part.items()}
