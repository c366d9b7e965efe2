"""AutoAttack (Croce & Hein, 2020): the accuracy that is left after four attacks, one after another.

    report = autoattack(model, x, y, Threat("linf", "8/255"))
    report.robust_accuracy, report.robust, report.attacks, report.adversarial, report.warnings, report.verdict

`model` is any callable from [0,1] pixels to logits. Random draws depend on (seed, attack, image id) alone and every
forward has one shape, so no image's flag depends on order, grouping, resume point or number of processes. `progress`
names a folder in which a killed run goes on. Under torch.distributed the images are shared out, and every process
gets the whole report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autolora.attacks import checks
from autolora.attacks.confirmation import attack
from autolora.attacks.engine.network import predicted
from autolora.attacks.engine.onnx_network import from_session
from autolora.attacks.engine.prepare import device_of
from autolora.attacks.evaluation import Answers, Evaluation, Settings, claim, forecast, opened
from autolora.attacks.mixture import is_mixture, three_ways, with_a_gradient
from autolora.attacks.report import AttackResult, Report
from autolora.attacks.verdicts import NAMES, Check, ordered, require
from autolora.attacks.versions import VERSIONS, Budget, Plan, Step, plan_of, square_alone
from autolora.common import distributed
from autolora.common.errors import BadArgument
from autolora.common.malloc import freed_memory_returned
from autolora.data.images import TestImages
from autolora.threat import Threat, require_threat

PRECISIONS = ("float32", "mixed")
NOTHING = Check(10, NAMES[10], "not run", "scores alone: no attack that follows gradients was made")
EARLIER_WORDS = {"full": "float32", "fast": "mixed"}


def autoattack(
    model: Answers,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    version: str = "standard",
    seed: int = 0,
    ids: Sequence[str] | None = None,
    progress: str | Path | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    budget: Budget | None = None,
    show: bool = True,
) -> Report:
    """x: [n,c,h,w], float in [0,1] or uint8; y: [n]; ids name the images by their content (default: its hash).

    `precision="mixed"` attacks quicker copies of the network (batch norm folded, on a CPU in onnxruntime; in bfloat16
    where that is faster, but for the targeted APGD, Square and whatever comes last), looks at each success again with
    the network itself in float32, and attacks it where only a copy was fooled.
    """
    require_threat(threat)
    settings = Settings(
        version, seed, precision, budget or Budget(), batch_size, progress, show,
        device=device_of(model, x),
    )  # fmt: skip
    return autoattack_of(model, TestImages.of(x, y, ids), threat, settings)


def black_box(
    model: Answers | Any,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    queries: int = 5000,
    seed: int = 0,
    ids: Sequence[str] | None = None,
    progress: str | Path | None = None,
    batch_size: int | None = None,
    show: bool = True,
) -> Report:
    """Square alone, from scores alone: `model` may also be an onnxruntime session."""
    require_threat(threat)
    answers: Answers = from_session(model) if hasattr(model, "get_inputs") else model
    settings = Settings(
        "square", seed, budget=Budget(queries=queries), batch_size=batch_size, progress=progress, show=show,
        gradients=False, device=device_of(answers, x),
    )  # fmt: skip
    return _checked(answers, TestImages.of(x, y, ids), threat, settings, square_alone(threat.norm, queries))


def autoattack_of(model: Answers, images: TestImages, threat: Threat, settings: Settings) -> Report:
    """`autoattack` on images that are shared with others."""
    _among("version", settings.version, VERSIONS)
    _among("precision", settings.precision, PRECISIONS)
    plan: Plan = partial(plan_of, settings.version, threat.norm, budget=settings.budget)
    if is_mixture(model):
        plan = three_ways(model, plan, settings.precision)  # type: ignore[arg-type]
    return _checked(with_a_gradient(model), images, threat, settings, plan)


def _among(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        new = f"; it is now called {EARLIER_WORDS[value]}" if argument == "precision" and value in EARLIER_WORDS else ""
        raise BadArgument(argument, value, f"expected one of {', '.join(allowed)}{new}")


def _checked(model: Answers, images: TestImages, threat: Threat, settings: Settings, plan: Plan) -> Report:
    """All attacks of a plan, between the checks before and after; a failed check stops it."""
    require(checks.in_advance(model, gradients=settings.gradients))
    buffers = checks.buffers_hash(model)
    with opened(model, images, threat, settings) as e:
        before = checks.before(e)
        require(before)
        report = run_plan(e, plan)
        e.drop_copies()
        report.fooled = distributed.of_the_first(predicted(e.judge.all_logits(report.adversarial, e.device)).cpu())
        works = [checks.attack_works(e.judge, e.x, report, randomised=e.randomised) if settings.gradients else NOTHING]
        works += checks.answers_in(model, gradients=settings.gradients)
        unmoved = checks.buffers_unmoved(model, buffers)
        report.checks = ordered([*before, unmoved, *works, *checks.after(report, images.pixels())])
    require(report.checks)
    return report


def run_plan(e: Evaluation, plan: Plan) -> Report:
    """Each attack of the plan on what the ones before it have left."""
    steps, deviation = plan(e.logits.shape[1])
    claim(e, steps)
    e.forecast = forecast(e, steps)
    answer = predicted(e.logits).cpu()
    report = Report(
        threat=e.threat,
        version=e.settings.version,
        deviation=deviation,
        seed=e.settings.seed,
        ids=e.images.ids,
        y=e.images.labels(),
        clean=e.clean,
        robust=e.clean.clone(),
        predicted=answer,
        adversarial=e.images.pixels().clone(),
        fooled=answer,
        attacks=[],
        precision=e.settings.precision,
        device=e.device.type,
        versions={"torch": torch.__version__.split("+")[0], "numpy": np.__version__} | e.runtime(),
    )
    for step in steps:
        freed_memory_returned()
        _run(e, step, report)
    return report


def _run(e: Evaluation, step: Step, report: Report) -> None:
    """One attack on what is still right; the report's flags and images are brought up to date."""
    begin, clock, spent = time.perf_counter(), time.process_time(), e.forwards()
    left = report.robust.nonzero().flatten().tolist()
    found = distributed.gathered(attack(e, step, distributed.mine(left)))
    points = {job: point for job, point in found.items() if point is not None}
    for image, attempt in sorted(points, reverse=True):  # the first attempt is written last
        report.robust[image] = False
        report.adversarial[image] = points[image, attempt]
    took = e.forwards() - spent
    report.attacks.append(
        AttackResult(
            name=step.name,
            robust_accuracy=report.robust_accuracy,
            broken=len(left) - int(report.robust.sum()),
            seconds=time.perf_counter() - begin,
            processor_seconds=time.process_time() - clock,
            forwards=sum(distributed.gathered({distributed.process_number(): took}).values()),
        )
    )
