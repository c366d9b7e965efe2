"""Whole training steps in float64 equal the oracle's: loss, gradient routing, batch norm, attack and SGD at once."""

import pytest
import torch

from autolora.threat import Threat
from autolora.training.controllers import Scalars
from autolora.training.learner import Learner
from autolora.training.loop import one_step
from autolora.training.settings import Settings
from tests.oracle import steps as oracle

EPS, STEPS, BATCH = 8 / 255, 3, 6
WEIGHTS = Scalars(0.7, 2.5)


def start(seed, method, reference="paper", average=None):
    """A learner on a small network with batch norms that have seen something, and its tensors for the oracle."""
    torch.manual_seed(seed)
    model = oracle.Small().double()
    for _ in range(3):
        model(torch.rand(8, 3, 8, 8, dtype=torch.float64))
    images, labels = torch.rand(BATCH, 3, 8, 8, dtype=torch.float64), torch.arange(BATCH) % 3
    threat, same = Threat("linf", EPS), {"batch_size": BATCH, "precision": "float32", "attack": "pgd"}
    settings = Settings(threat, method, reference, gamma=0.4, **same)
    learner = Learner(model, (images, labels), (images, labels), settings, torch.device("cpu"))
    learner.weights = WEIGHTS
    learner.model.train()
    w = {k: v.detach().clone().requires_grad_(True) for k, v in model.named_parameters()}
    return learner, w, {k: v.clone() for k, v in model.named_buffers() if "batches" not in k}


def batch(learner, step):
    """A batch and the attack's noise, drawn as the learner will draw it."""
    x = torch.rand(BATCH, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    y = torch.randint(0, 3, (BATCH,), generator=torch.Generator().manual_seed(step))
    learner.begin(step, BATCH)
    noise = torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return x, y, noise * EPS


def close(mine, theirs):
    for name, value in theirs.items():
        assert torch.allclose(mine[name], value, rtol=1e-8, atol=1e-10), name


def check_network(learner, w, stats):
    close(dict(learner.model.named_parameters()), w)
    close(dict(learner.model.named_buffers()), stats)


@pytest.mark.parametrize("seed", range(3))
def test_autolora(seed):
    learner, w, stats = start(seed, "autolora")
    assert learner.branch.names == oracle.BRANCHED
    branch = {k: v.clone().requires_grad_(True) for k, v in learner.branch.factors().items()}
    velocity = {}
    for step in range(STEPS):
        x, y, noise = batch(learner, step)
        found, _ = one_step(learner, x, learner.attack(x, y), y)
        loss = oracle.autolora_loss(w, branch, stats, x, y, noise, EPS, *WEIGHTS)
        tensors = w | branch
        gradients = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values()))))
        oracle.sgd(tensors, gradients, velocity, rate=0.01, decay=1e-4)
        w, branch = {k: tensors[k] for k in w}, {k: tensors[k] for k in branch}
        assert found[0].item() == pytest.approx(loss.item(), rel=1e-6)
        check_network(learner, w, stats)
        close(learner.branch.factors(), branch)
    assert any(factor.abs().max() > 1e-4 for name, factor in branch.items() if name.endswith("B"))  # it moved


@pytest.mark.parametrize("seed", range(2))
def test_vanilla(seed):
    learner, w, stats = start(seed, "vanilla")
    velocity = {}
    for step in range(STEPS):
        x, y, noise = batch(learner, step)
        one_step(learner, x, learner.attack(x, y), y)
        loss = oracle.vanilla_loss(w, stats, x, y, noise, EPS)
        oracle.sgd(w, dict(zip(w, torch.autograd.grad(loss, list(w.values())))), velocity, rate=0.003, decay=1e-4)
        check_network(learner, w, stats)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("reference", ["paper", "released"])
def test_twins(reference, seed):
    learner, w, stats = start(seed, "twins", reference)
    names = [f"{n}.{p}" for n in oracle.NORMS for p in ("weight", "bias")]
    frozen = {f"frozen {n}": w[n].detach().clone().requires_grad_(True) for n in names}
    frozen_stats, velocity = {k: v.clone() for k, v in stats.items()}, {}
    for step in range(STEPS):
        x, y, noise = batch(learner, step)
        one_step(learner, x, learner.attack(x, y), y)
        affine = {n.removeprefix("frozen "): t for n, t in frozen.items()}
        loss = oracle.twins_loss(w, affine, frozen_stats, stats, x, y, noise, EPS, 0.4, reference == "released")
        tensors = w | frozen
        gradients = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values()))))
        oracle.sgd(tensors, gradients, velocity, rate=0.003, decay=1e-4)
        w, frozen = {k: tensors[k] for k in w}, {k: tensors[k] for k in frozen}
        check_network(learner, w, stats)
        close({f"frozen {n}": t for n, t in zip(learner.norms.names, learner.norms.affine)}, frozen)
        close(learner.norms.pretrained.values(), frozen_stats)


def test_natural_and_linear():
    for method, train in (("natural", True), ("linear", False)):
        learner, w, stats = start(0, method)
        velocity = {}
        for step in range(STEPS):
            x, y, _ = batch(learner, step)
            one_step(learner, x, learner.attack(x, y), y)
            trained = w if train else {k: v for k, v in w.items() if k.startswith("head")}
            loss = oracle.ce(oracle.forward(w, stats, x, train), y)
            gradients = dict(zip(trained, torch.autograd.grad(loss, list(trained.values()))))
            oracle.sgd(w, gradients, velocity, rate=0.01, decay=1e-4)
            check_network(learner, w, stats)
