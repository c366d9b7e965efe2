"""The estimate as a table: minutes for each stage, memory, disk, and what would make it shorter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from autolora.backbones.layers import weight_layers
from autolora.backbones.loading import load_backbone
from autolora.common.processes import cores, peak_memory
from autolora.common.progress import duration, size
from autolora.training.subtuning import blocks_of
from stages.common import processes
from stages.common.params import Evaluate, Params
from stages.common.runner import processes_asked_for
from stages.estimate import attack_costs, costs
from stages.estimate.attack_costs import attacked
from stages.estimate.clock import price_of, threads, training
from stages.estimate.costs import Counts, Price
from stages.estimate.images import look

START = 6.0  # seconds in which a stage's process begins: Python, torch, what else it imports
REGISTERING = 30.0  # seconds for MLflow's start and its first migrations
WORTH = 0.1  # share of the whole that a proposal must save
ROW = "{:<10} {:>12}   {}"


@dataclass(frozen=True)
class Estimate:
    params: Params
    counts: Counts
    price: Price
    decoding: float | None
    parameters: int  # of the network
    layers: int
    blocks: int
    memory: int  # bytes that this process took to train on one batch

    def seconds(self, params: Params | None = None) -> dict[str, float]:
        """Each stage's, with these parameters or with others."""
        p, counts, price = params or self.params, self.counts, self.price
        n = attacked(p.evaluate, counts.test)
        points = costs.points_of_the_dial(p.merge, p.finetune.method, p.finetune.members)
        mixed, asked = p.merge.mix != "none", costs.at_most(p.finetune)
        attacks = attack_costs.evaluate(price, n, counts.classes, p.threat.norm, p.evaluate, mixed=mixed)
        layer = costs.critical(price, counts, self.layers) if p.merge.toward == "critical" else 0.0
        work = {
            "prepare": counts.all * (self.decoding or 0.0) / (processes_asked_for() or cores()),
            "validate": 0.0,
            "finetune": sum(costs.finetune(price, counts, asked, self.blocks, p.threat.eps, p.threat.norm))
            / training(),
            "merge": (layer + costs.dial(price, counts, points) + mixed * costs.mixture(price, counts)) / threads(),
            "evaluate": attacks / processes.count(),
            "export": attack_costs.export(price, n, p.export) / threads(),
            "register": REGISTERING,
        }
        return {stage: START + seconds for stage, seconds in work.items()}


def measured(params: Params) -> Estimate:
    images, section = look(params.data), params.backbone
    model = load_backbone(
        section.arch,
        classes=images.counts.classes,
        image_size=params.data.image_size,
        stem=section.stem,
        options=section.options,
        network_size=section.network_size,
    )
    batch = min(params.finetune.batch_size, images.counts.train)
    price = price_of(model, batch)
    parameters = sum(p.numel() for p in model.parameters())
    layers = len(weight_layers(model))
    blocks = len(blocks_of(model)) if params.finetune.trains == "blocks" else 0
    return Estimate(params, images.counts, price, images.decoding, parameters, layers, blocks, _peak())


def _peak() -> int:
    """GPU memory where there is a GPU, else what this process holds at most."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_memory()


def lines(e: Estimate) -> Iterator[str]:
    took, c, p = e.seconds(), e.counts, e.params
    parts = f"{c.train:,} to train on, {c.val:,} for validation, {c.test:,} for test"
    yield f"{c.all:,} images of {c.classes} classes: about {parts}"
    yield f"{p.backbone.arch}: {e.parameters:,} weights; an image takes {1000 * e.price.forward:.3g} ms forward here"
    yield ""
    yield from (ROW.format(stage, duration(seconds), told) for (stage, seconds), told in zip(took.items(), told_of(e)))
    yield ROW.format(
        "all", duration(sum(took.values())), "at most: as if every image stood, and no training ended early"
    )
    yield ""
    yield ROW.format(
        "memory", size(e.memory), f"measured on training steps {'on the GPU' if torch.cuda.is_available() else 'here'}"
    )
    yield ROW.format(
        "disk", size(disk(e)), f"of {size(shutil.disk_usage('.').free)} free: data, weights, progress, DVC's cache"
    )
    yield ""
    yield from shorter(e, sum(took.values()))


def told_of(e: Estimate) -> list[str]:
    p, c = e.params, e.counts
    prepare = "decoding" if e.decoding is not None else "without the download and decoding: the images are not here yet"
    points = costs.points_of_the_dial(p.merge, p.finetune.method, p.finetune.members)
    n = attacked(p.evaluate, c.test)
    members = f" of each of {p.finetune.members} members" if p.finetune.members > 1 else ""
    return [
        prepare,
        "checks",
        f"{p.finetune.epochs} epochs{members}{chosen(e)}, and as many of the naturally tuned twin",
        f"{points} points of the dial",
        f"AutoAttack ({p.evaluate.version}) on {n:,} images, of two networks{also(p.evaluate)}",
        f"attacks on {min(n, p.export.check_images)} images through onnxruntime",
        "MLflow",
    ]


def chosen(e: Estimate) -> str:
    return f", {costs.short_runs(e.blocks)} short runs that choose blocks" if e.blocks else ""


def also(section: Evaluate) -> str:
    return f"; also {', '.join(section.also)}" if section.also else ""


def disk(e: Estimate) -> int:
    """Decoded images lie in data/ and in .work, each output also in DVC's cache where that cannot link."""
    p, c = e.params, e.counts
    stored = (p.data.stored_size or p.data.image_size) ** 2
    pixels = 3 * (c.train * stored + (c.val + c.test) * p.data.image_size**2)
    adversarial = attacked(p.evaluate, c.test) * 3 * p.data.image_size**2 * 5
    weights = 4 * e.parameters
    return 3 * pixels + 2 * adversarial + 14 * weights  # five files twice, and two checkpoints with momentum


def shorter(e: Estimate, whole: float) -> Iterator[str]:
    found = [(whole - sum(e.seconds(changed).values()), words) for words, changed in proposals(e.params, e.counts)]
    worth = [(saved, words) for saved, words in sorted(found, reverse=True) if saved > WORTH * whole]
    if worth:
        yield "What would make it shorter:"
    yield from (f"  {words:<40} {duration(saved)} less" for saved, words in worth)
    if not torch.cuda.is_available() and whole > 3600:
        yield "  a GPU: it is used where PyTorch sees one"


def proposals(params: Params, counts: Counts) -> Iterator[tuple[str, Params]]:
    changes: list[tuple[str, str, dict[str, object]]] = []
    n = attacked(params.evaluate, counts.test)
    for fewer in (1000, 100):
        if n > fewer:
            changes.append((f"evaluate.images: {fewer} (it is {n:,})", "evaluate", {"images": fewer}))
    if params.evaluate.version != "fast":
        changes.append(("evaluate.version: fast (no standard figure)", "evaluate", {"version": "fast"}))
    half = params.finetune.epochs // 2
    if half:
        changes.append((f"finetune.epochs: {half} (it is {params.finetune.epochs})", "finetune", {"epochs": half}))
    for words, section, values in changes:
        changed = getattr(params, section).model_copy(update=values)
        yield words, params.model_copy(update={section: changed})
