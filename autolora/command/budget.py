"""`--budget MINUTES`: as many images as fit into the time, and in words what is left out."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch

from autolora.attacks.engine.network import Network
from autolora.attacks.versions import Step, plan_of, square_alone, work
from autolora.command.images import Data
from autolora.command.models import Target
from autolora.common import distributed
from autolora.common.files import read_json, write_json
from autolora.common.progress import duration
from autolora.data.sample import stratified
from autolora.threat import Threat


def within(budget: float | None, model: Target, data: Data, how: tuple[list[Threat], str], kept: Path) -> str:
    """`data` becomes as many images as fit; in words what does not. A run that goes on has those that it began with."""
    if budget is None:
        return ""
    n, known = len(data.images), kept / "images.json"
    if distributed.process_number() == 0 and not known.exists():
        each = _work(model, data, *how) * _seconds(model, data, how[1]) / distributed.process_count()
        write_json(known, {"fit": max(1, min(n, int(60 * budget / each))), "seconds": each})
    distributed.wait()
    fit, each = read_json(known)["fit"], read_json(known)["seconds"]
    if fit >= n:
        return ""
    data.images = stratified(data.images, fit, 0)
    said = f"{n - fit} of {n} images are left out: all would take up to {duration(n * each)}"
    return f"{said}, and {budget:g} min are given"


def _work(model: Target, data: Data, threats: list[Threat], version: str) -> float:
    """F for one image that stands every threat to the end."""
    return sum(_work_of(model, data, threat, version) for threat in threats)


def _work_of(model: Target, data: Data, threat: Threat, version: str) -> float:
    classes = model.network(data.images.pixels()[:1]).shape[1]  # it may answer for more than there are images of
    plan = square_alone(threat.norm, 5000) if version == "square" else partial(plan_of, version, threat.norm)
    steps: list[Step] = plan(classes)[0]
    network = Network(model.network, 1)
    return sum(work(step, network, threat).in_forwards for step in steps)


def _seconds(model: Target, data: Data, version: str, batch: int = 8) -> float:
    """Of one F, the second time: of half a gradient, or where scores alone are asked for of an answer."""
    x = data.images.pixels()[torch.arange(batch) % len(data.images)]
    network = Network(getattr(model.network, "quick", model.network), batch)
    took = 0.0
    for _ in range(2):
        begin = time.perf_counter()
        if version == "square":
            network.all_logits(x)
        else:
            network.gradient(x, lambda z, rows: z.logsumexp(1))
        took = time.perf_counter() - begin
    return took / (batch if version == "square" else 2 * batch)
