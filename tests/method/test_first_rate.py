"""The first rate that finds itself: one over the mean square length of what the head is given."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from autolora.data.batches import to_pixels
from autolora.threat import Threat
from autolora.training import loop
from autolora.training.first_rate import HIGHEST, IMAGES, LOWEST, feature_power, first_rate, some_of
from autolora.training.learner import Learner
from autolora.training.loop import Diverged, finetune
from autolora.training.settings import Settings
from tests.method.small import QUICK, THREAT, images, network

FOUND = QUICK | {"reference": "best", "epochs": 1}


def power_of(model, n=24):
    """By hand, in float64: the features are what the network gives without its head."""
    body = copy.deepcopy(model).double().eval()
    body.head = nn.Identity()
    with torch.no_grad():
        features = body(to_pixels(torch.from_numpy(images(n)[0])).double())
    return float(np.square(features.numpy()).sum(1).mean())


def scaled(factor):
    """The same network, whose head is given features `factor` times as long."""
    model = network()
    model.head = nn.Sequential(Times(factor), nn.Linear(model.head.in_features, 3))
    return model


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_the_power_is_that_of_the_heads_input():
    model = network()
    batches = to_pixels(torch.from_numpy(images(24)[0])).split(7)
    assert feature_power(model, batches) == pytest.approx(power_of(model), rel=1e-5)
    assert model.training  # as it was


def test_features_twice_as_long_learn_at_a_quarter():
    x = to_pixels(torch.from_numpy(images(24)[0]))
    one, two = (feature_power(scaled(factor), [x]) for factor in (1.0, 2.0))
    assert two == pytest.approx(4 * one)
    assert first_rate(0.5 * 64) == pytest.approx(4 * first_rate(2 * 64), rel=0.01)


def test_the_rate_has_bounds_and_three_digits():
    assert [first_rate(power) for power in (0.0, 1.0, 12.25, 115.49, 1e6)] == [
        HIGHEST,
        HIGHEST,
        0.0816,
        0.00866,
        LOWEST,
    ]


def test_the_images_are_spread_over_the_part():
    assert some_of(5).tolist() == [0, 1, 2, 3, 4]
    chosen = some_of(10 * IMAGES)
    assert len(chosen.unique()) == IMAGES
    assert (int(chosen[0]), int(chosen[-1])) == (0, 10 * IMAGES - 1)


@pytest.mark.parametrize("head", ["tokens", "pointwise"])
def test_heads_of_other_kinds(head):
    """A transformer's is given one vector an image; a 1x1 convolution a map, of which each place counts."""
    if head == "tokens":
        model = timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=4, num_classes=3, depth=1)
        x = torch.rand(4, 3, 8, 8)
        with torch.no_grad():
            given = model.eval().forward_head(model.forward_features(x), pre_logits=True)
    else:
        stem, last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)
        model = nn.Sequential(stem, nn.ReLU(), last, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        x = torch.rand(4, 3, 8, 8)
        given = stem(x).relu().permute(0, 2, 3, 1)
    expected = float(given.detach().square().sum(-1).mean())
    assert feature_power(model, [x]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["autolora", "vanilla", "twins", "madry", "natural", "linear"])
def test_under_best_every_method_starts_from_it(method):
    tuned = finetune(network(), images(24), images(12, 1), THREAT, method=method, **FOUND)
    assert tuned.history[0]["lr"] == first_rate(power_of(network()))
    given = finetune(network(), images(24), images(12, 1), THREAT, method=method, rate=0.02, **FOUND)
    assert given.history[0]["lr"] == 0.02


@pytest.mark.parametrize(("method", "rate"), [("madry", 0.01), ("vanilla", 0.003), ("natural", 0.01)])
@pytest.mark.parametrize("reference", ["paper", "released"])
def test_the_papers_own_rules_keep_their_rates(reference, method, rate):
    tuned = finetune(network(), images(24), images(12, 1), THREAT, method=method, **FOUND | {"reference": reference})
    assert tuned.history[0]["lr"] == rate


def test_where_training_diverges_it_starts_again_at_a_quarter(monkeypatch, tmp_path, capsys):
    """A rate far beyond the bounds: what they do not prevent."""
    monkeypatch.setattr("autolora.training.learner.first_rate", lambda power: 1e9)
    monkeypatch.setattr(loop, "SLOWER", 1e11)  # a quarter of 1e9 diverges as well
    run = dict(method="madry", checkpoints=tmp_path, **FOUND | {"epochs": 4})
    whole = finetune(network(), images(24), images(12, 1), THREAT, **run)
    assert [record["epoch"] for record in whole.history] == [1, 2, 3, 4]
    assert whole.history[0]["lr"] == 0.01 == whole.settings.rate
    assert "Once more from the start, at the rate 0.01." in capsys.readouterr().err
    once = finetune(network(), images(24), images(12, 1), THREAT, rate=0.01, method="madry", **FOUND | {"epochs": 4})
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), once.model.state_dict().values()))


def test_a_given_rate_is_nobodys_to_change():
    with pytest.raises(Diverged, match="a baseline may need a lower rate"):
        finetune(network(), images(24), images(12, 1), THREAT, method="madry", rate=1e9, **FOUND | {"epochs": 4})


def test_it_does_not_depend_on_the_batch():
    rates = []
    for batch in (5, 16, 24):
        settings = Settings(THREAT, "autolora", "best", batch_size=batch, precision="float32")
        part = tuple(torch.as_tensor(p) for p in images(24))
        rates.append(Learner(network(), part, part, settings, torch.device("cpu")).controller.rate)
    assert len(set(rates)) == 1


def test_training_attacks_with_one_gradient_where_that_serves():
    """auto under `best` and linf; ten under the paper's rules and under L2."""

    def asked(**changes):
        run = FOUND | {"reference": "best"} | changes
        threat = run.pop("threat", THREAT)
        return finetune(network(), images(24), images(12, 1), threat, **run).settings.attack

    assert asked() == "auto"
    assert asked(reference="paper") == asked(threat=Threat("l2", 0.5)) == asked(method="natural") == "pgd"


def test_distillation_that_diverges_keeps_its_decay(monkeypatch):
    """That of the rate that was found, not the published one's, which goes with a rate of 0.01."""
    monkeypatch.setattr("autolora.training.learner.first_rate", lambda power: 1e9)
    monkeypatch.setattr(loop, "SLOWER", 1e11)
    tuned = finetune(
        network(), images(24), images(12, 1), THREAT, method="distill", teacher="first_pass", **FOUND | {"epochs": 2}
    )
    assert (tuned.settings.rate, tuned.settings.decay) == (0.01, 1e-4)
