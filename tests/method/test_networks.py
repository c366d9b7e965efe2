"""Each value of each axis takes a step or two on a transformer, with batch norm and without."""

import pytest
import torch
from torch import nn

from autolora.data.batches import AUGMENTATIONS
from autolora.training.loop import finetune
from autolora.training.objectives import METHODS, REFERENCES
from autolora.training.settings import ATTACKS, EPS_SCHEDULES, STARTS, TRAINS
from tests.method.small import QUICK, THREAT, images, network, transformer, without_batch_norm

NETWORKS = {"transformer": transformer, "batch norm": network, "no batch norm": without_batch_norm}
OTHER_METHOD = {("augmentation", "interpolate"): "madry"}  # where the loss of TRADES does not do
ELSEWHERE = {"distill", "twins"}  # a teacher, or batch norm, is needed: tested with it
DEFAULTS = {"vanilla", "pretrained", "all", "constant", "best", "auto"}  # each of these tests takes the others'
VALUES = [
    *(("method", name) for name in METHODS if name not in ELSEWHERE),
    *(("start", name) for name in STARTS if name not in DEFAULTS),
    *(("attack", name) for name in ATTACKS if name not in DEFAULTS),
    *(("trains", name) for name in TRAINS if name not in DEFAULTS),
    *(("eps_schedule", name) for name in EPS_SCHEDULES if name not in DEFAULTS),
    *(("reference", name) for name in REFERENCES if name not in DEFAULTS),
    *(("augmentation", name) for name in AUGMENTATIONS if name not in DEFAULTS),
    ("weight_attack", 0.01),
    ("smoothing", 0.1),
    ("average", 0.9),
]


@pytest.mark.parametrize("made", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize(("axis", "value"), VALUES, ids=str)
def test_a_value_of_an_axis(made, axis, value):
    method = OTHER_METHOD.get((axis, value), "vanilla")
    settings = QUICK | {"method": method, "reference": "best", "epochs": 1, "batch_size": 8} | {axis: value}
    tuned = finetune(made(), images(16), images(6, 1), THREAT, **settings)
    before, after = made().state_dict(), tuned.model.state_dict()
    assert before.keys() == after.keys()  # a plain network, whatever was beside it in training
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    (record,) = tuned.history
    assert record["loss"] > 0
    assert 0 <= record["val_robust"] <= 1


@pytest.mark.parametrize(("name", "made"), NETWORKS.items())
def test_each_network_is_what_it_is_called(name, made):
    assert any(isinstance(module, nn.BatchNorm2d) for module in made().modules()) == (name == "batch norm")
