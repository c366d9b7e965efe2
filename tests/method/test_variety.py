"""Harder images from where a network learns its training images by heart: when, for whom, and that a run resumes."""

import pytest
import torch

from autolora.data.batches import augmentation
from autolora.training import judgement, measuring
from autolora.training.learner import Learner
from autolora.training.loop import finetune
from autolora.training.settings import Settings
from autolora.training.variety import APART, Variety
from stages.common.params import Finetune
from stages.finetune import how, told_of
from tests.method.small import QUICK, THREAT, images, network

WATCHED = {"method": "autolora", "reference": "best", "attack": "single", "augmentation": "auto"}


def tune(epochs=4, **changes):
    return finetune(network(), images(48), images(12, 1), THREAT, **QUICK | WATCHED | {"epochs": epochs} | changes)


def variety(**changes):
    return Variety(Settings(THREAT, **WATCHED | changes), 8, 8)


def right(count, of=100):
    return torch.arange(of) < count


@pytest.fixture
def by_heart(monkeypatch):
    """Every training image is right, no validation image."""
    monkeypatch.setattr(judgement, "training_hits", lambda learner: right(5, 5))
    monkeypatch.setattr(judgement, "clean_hits", lambda learner: right(0, 12))


def test_more_than_a_quarter_apart_images_become_harder_once():
    each = variety()
    assert APART == 0.25
    assert not each.becomes_harder(right(70), right(45))
    assert not each.becomes_harder(right(20), right(90))  # validation is ahead
    assert each.watches
    assert each.becomes_harder(right(71), right(45))
    assert not each.watches
    x = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    hard = augmentation("idbh", 8, 8)
    draws = hard.draw(6, torch.Generator().manual_seed(0))
    assert torch.equal(each.now.draw(6, torch.Generator().manual_seed(0)), draws)
    assert torch.equal(each.now.apply(x, draws), hard.apply(x, draws))


@pytest.mark.parametrize(
    "asked",
    [{"augmentation": "crop"}, {"augmentation": "crop_flip"}, {"reference": "paper"}, {"reference": "released"},
     {"method": "natural"}, {"method": "linear"}, {"trains": "head", "method": "madry"}],
)  # fmt: skip
def test_who_names_an_augmentation_or_a_papers_rule_keeps_it(asked):
    assert not variety(**asked).watches


def test_crops_of_larger_images_stay():
    assert not Variety(Settings(THREAT, **WATCHED), 24, 16).watches


@pytest.mark.parametrize("method", ["autolora", "vanilla", "madry"])
def test_all_methods_under_the_defaults_rule_watch(method):
    assert variety(method=method).watches


def test_what_is_learnt_by_heart_is_varied_harder_from_the_next_epoch_on(by_heart, monkeypatch):
    seen, applied = [], Learner.begin
    monkeypatch.setattr(Learner, "begin", lambda self, *a: seen.append(self.variety.name) or applied(self, *a))
    tuned = tune()
    events = [record["event"].split("+") for record in tuned.history]
    at = next(epoch for epoch, record in enumerate(tuned.history, start=1) if record["val_clean"] is not None)
    assert [epoch for epoch, event in enumerate(events, start=1) if "harder" in event] == [at]
    steps = len(seen) // len(events)
    assert seen == ["auto"] * at * steps + ["idbh"] * (len(events) - at) * steps
    assert how(Finetune(), tuned)["harder"] == [at]
    assert "harder" not in how(Finetune(), tune(augmentation="crop_flip"))


def test_in_the_last_epoch_there_is_nothing_left_to_vary(by_heart):
    assert told_of(tune(epochs=1).history) == {}


def test_images_of_training_are_asked_as_they_are():
    """Planted: a head that always says class 0, which a third of the training images are."""
    part = [tuple(torch.as_tensor(each) for each in images(n)) for n in (600, 12)]
    learner = Learner(network(), *part, Settings(THREAT, **WATCHED), torch.device("cpu"))
    with torch.no_grad():
        head = [learner.model.get_parameter(name) for name in learner.head]
        for parameter in head:
            parameter.zero_()
        head[-1][0] = 1.0
    hits = measuring.training_hits(learner)
    assert len(hits) == 512
    assert hits.tolist() == [label == 0 for label in part[0][1][torch.linspace(0, 599, 512).long()].tolist()]


def test_a_run_that_is_broken_off_after_it_goes_on_with_harder_images(by_heart, tmp_path, monkeypatch):
    def stop(record):
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    whole = tune(checkpoints=tmp_path / "whole")
    assert "harder" in "".join(record["event"] for record in whole.history[:3])
    with pytest.raises(KeyboardInterrupt):
        tune(checkpoints=tmp_path / "killed", on_epoch=stop)
    resumed = tune(checkpoints=tmp_path / "killed")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert [r["event"] for r in whole.history] == [r["event"] for r in resumed.history]
