"""Whether a backbone is robust before training, and the schedule of eps that follows from it."""

import pytest
import torch
from torch import nn

from autolora.data.batches import to_pixels
from autolora.threat import Threat
from autolora.training import robust_already
from autolora.training.loop import finetune
from autolora.training.robust_already import IMAGES, MOST, features_moved, with_schedule
from autolora.training.settings import Settings, decided
from tests.method.small import QUICK, THREAT, images, network

AUTO = QUICK | {"reference": "best", "eps_schedule": "auto", "epochs": 4}


def linear(weights):
    """Features are a linear map of the pixels, whatever comes after."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(*weights.T.shape, bias=False), nn.Linear(len(weights), 3))
    model[1].weight.data = weights
    return model


def in_the_middle(n=12):
    torch.manual_seed(0)
    return torch.rand(n, 3, 4, 4) * 0.5 + 0.25  # no ball reaches black or white


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_of_one_linear_feature_it_is_known(norm):
    """The worst that the ball holds moves it by eps times the dual norm of its weights."""
    threat, x = Threat(norm, 0.05), in_the_middle()
    w = torch.randn(1, 48)
    f = x.flatten(1) @ w[0]
    dual = w.abs().sum() if norm == "linf" else w.norm()
    pairs = (f[:, None] - f[None]).square().mean()  # an image beside itself among them: n of n^2
    assert features_moved(linear(w), x, threat) == pytest.approx(float((0.05 * dual) ** 2 / pairs), rel=0.02)


def test_the_network_is_as_it_was_and_the_draws_are_its_own():
    model, x = network(), to_pixels(torch.from_numpy(images(24)[0]))
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    first, second = (features_moved(model, x, THREAT) for _ in range(2))
    assert first == second
    assert torch.equal(torch.rand(3), drawn)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_larger_ball_moves_more_and_the_head_counts_for_nothing():
    model, x = network(), to_pixels(torch.from_numpy(images(24)[0]))
    found = [features_moved(model, x, Threat("linf", eps)) for eps in ("1/255", "4/255", "16/255")]
    assert found == sorted(found)
    assert found[0] < found[2]
    before = features_moved(model, x, THREAT)
    nn.init.normal_(model.head.weight)
    assert features_moved(model, x, THREAT) == before


@pytest.mark.parametrize(("found", "schedule"), [(MOST, "constant"), (MOST + 0.01, "ramp")])
def test_a_run_decides_by_it_and_says_so(monkeypatch, capsys, found, schedule):
    monkeypatch.setattr(robust_already, "features_moved", lambda *of: found)
    tuned = finetune(network(), images(24), images(12, 1), THREAT, **AUTO | {"progress": True})
    verdict, said = {
        "constant": ("robust already", "eps is the whole one throughout"),
        "ramp": ("not robust yet", "eps grows from 0"),
    }[schedule]
    reason = f"an attacker moves its features by {found:g} of the squared distance between two images"
    assert f"The backbone is {verdict}: {reason}, so {said}." in capsys.readouterr().err
    assert (tuned.settings.eps_schedule, tuned.features_moved) == (schedule, found)
    assert f"eps     The backbone is {verdict}: {reason}" in repr(tuned)
    same = finetune(network(), images(24), images(12, 1), THREAT, **AUTO | {"eps_schedule": schedule})
    assert same.features_moved is None
    for name, value in same.model.state_dict().items():
        assert torch.equal(tuned.model.state_dict()[name], value), name


@pytest.mark.parametrize("setting", [{"method": "natural"}, {"reference": "paper"}, {"reference": "released"}])
def test_what_a_ramp_does_not_go_with_keeps_the_whole_threat(monkeypatch, setting):
    monkeypatch.setattr(robust_already, "features_moved", None)  # and nothing is measured
    x, y = images(24)
    train = x, torch.from_numpy(y)
    asked = Settings(THREAT, **{"reference": "best", "eps_schedule": "auto"} | setting)
    settings, moved = with_schedule(decided(asked, train), network(), train, 8, torch.device("cpu"))
    assert (settings.eps_schedule, moved) == ("constant", None)


def test_real_backbones_are_told_apart(shared):
    """One network twice: as pre-trained on natural images, and on attacked ones."""
    from benchmarks.rate_rules import backbone, parts

    data = parts(shared, "dtd10", 0)
    x = to_pixels(data["train"][0][torch.linspace(0, len(data["train"][0]) - 1, IMAGES).long()])
    found = {
        net: features_moved(backbone(shared, net, data, 0), x, Threat("linf", "2/255"))
        for net in ("natural20", "resnet20", "shipped")
    }
    assert found["natural20"] > 3 * MOST
    assert max(found["resnet20"], found["shipped"]) < MOST / 3
