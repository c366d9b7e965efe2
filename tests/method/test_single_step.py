"""Training on one gradient an image: the attack, ELLE-A's weight and bend, looks at validation, and the guard."""

import copy
from statistics import mean, pstdev

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from autolora.attacks.pgd import random_in_ball
from autolora.threat import Threat
from autolora.training import attack as training_attack
from autolora.training import judgement, loop, measuring
from autolora.training.attack import TrainingAttack
from autolora.training.controllers import AutoRate, Measured, PairedRate, between_looks
from autolora.training.judgement import judge_epoch
from autolora.training.learner import Learner
from autolora.training.loop import finetune
from autolora.training.resume import RunState
from autolora.training.settings import Settings
from autolora.training.single_step import Straight, bends, collapsed, single_step
from stages.common.params import Finetune
from stages.finetune import how
from tests.method.small import QUICK, THREAT, images, network


def tune(method="autolora", epochs=3, threat=THREAT, **changes):
    settings = {**QUICK, "method": method, "epochs": epochs, "reference": "best", "attack": "single", **changes}
    return finetune(network(), images(48), images(12, 1), threat, **settings)


def test_one_gradient_from_the_noisy_point_and_no_projection():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64, generator=draw), torch.arange(6) % 3
    noise = (torch.rand(x.shape, dtype=x.dtype, generator=draw) * 2 - 1) * 2 * THREAT.eps
    asked = []
    model = network().double().eval()

    def logits(point):
        asked.append(point.detach().clone())
        return model(point)

    found = single_step(logits, x, y, THREAT, noise)
    (point,) = asked
    assert torch.equal(point, (x + noise).clamp(0, 1))
    point.requires_grad_(True)
    slope = torch.autograd.grad(sum(F.cross_entropy(model(point)[i : i + 1], y[i : i + 1]) for i in range(6)), point)[0]
    assert torch.equal(found, (point.detach() + THREAT.eps * slope.sign()).clamp(0, 1))
    reach = (found - x).abs().max() / THREAT.eps
    assert 1 < reach <= 3 + 1e-9


def test_elle_a_waits_for_an_outlier_and_forgets_it_slowly():
    seen, weight = [], 0.0
    straight = Straight()
    for bend in [1.0, 1.1, 0.9, 1.0, 5.0, 1.0, 1.2, 0.8, 9.0, 1.0]:
        outlier = len(seen) > 2 and bend > mean(seen) + 2 * pstdev(seen)
        weight = 4000.0 if outlier else 0.99 * weight
        seen.append(bend)
        straight.observe(bend)
        assert straight.weight == pytest.approx(weight)
    assert straight.weight == pytest.approx(4000 * 0.99)


def test_a_straight_loss_has_no_bend_and_twice_the_loss_four_times_as_much():
    draw = torch.Generator().manual_seed(0)
    x, draws = torch.rand(4, 3, 5, 5, generator=draw), torch.rand(2, 4, 3, 5, 5, generator=draw) * 2 - 1
    share = torch.rand(4, generator=draw)
    slope = torch.randn(3, 5, 5, generator=draw)
    straight = bends(lambda points: (points * slope).sum((1, 2, 3)), x, draws, share, 0.1)
    assert straight.abs().max() < 1e-10
    once, twice = (bends(lambda p, k=k: k * p.square().sum((1, 2, 3)), x, draws, share, 0.1) for k in (1, 2))
    assert once.min() > 0
    assert torch.allclose(twice, 4 * once)


def test_above_eight_the_loss_has_the_term_and_at_eight_it_has_not(monkeypatch):
    asked = []
    bend = training_attack.TrainingAttack.bend
    monkeypatch.setattr(training_attack.TrainingAttack, "bend", lambda *a: asked.append(1) or bend(*a))
    tune("madry", epochs=1)
    assert not asked
    tune("madry", epochs=1, threat=Threat("linf", "16/255"))
    assert len(asked) == 3  # a step each


def of_one_gradient(threat, method="madry"):
    """In float64, with weights that have moved: batch norm is folded for the attack."""
    torch.manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    settings = Settings(threat, method, "best", batch_size=6, precision="float32", attack="single")
    made = loop.Learner(network().double(), (x, y), (x, y), settings, torch.device("cpu"))
    made.model.train()
    made.begin(1, len(y))
    return made, x, y


def test_the_attack_of_training_starts_within_twice_eps_and_takes_one_step():
    made, x, y = of_one_gradient(THREAT)
    noise = 2 * random_in_ball(x, THREAT, torch.Generator().manual_seed(1))  # the step's seed
    assert 1.9 < noise.abs().max() / THREAT.eps <= 2
    found = made.attack(x, y)
    point = (x + noise).clamp(0, 1).requires_grad_(True)
    slope = torch.autograd.grad(F.cross_entropy(copy.deepcopy(made.model).eval()(point), y), point)[0]
    assert torch.allclose(found, (point.detach() + THREAT.eps * slope.sign()).clamp(0, 1), atol=1e-12)
    assert (found - x).abs().max() > 2 * THREAT.eps


def test_above_eight_the_bend_is_part_of_the_loss_and_of_its_gradient():
    made, x, y = of_one_gradient(Threat("linf", "16/255"))
    attacked = made.attack(x, y)
    draws = made.attacker.noise.get_state()
    slopes, totals = [], []
    for weight in (0.0, 4000.0):
        made.attacker.straight.weight = weight
        made.attacker.noise.set_state(draws)
        totals.append(made.losses(x, attacked, y).total)
        slopes.append(torch.autograd.grad(totals[-1], list(made.model.parameters()), allow_unused=True))
    assert made.bend > 0
    assert totals[1].item() == pytest.approx(totals[0].item() + 4000 * made.bend.item(), rel=1e-9)
    made.attacker.noise.set_state(draws)
    bend = made.attacker.bend(made.still, x, y).mean()  # the network at rest
    assert bend.item() == pytest.approx(made.bend.item(), rel=1e-9)
    own = torch.autograd.grad(bend, list(made.model.parameters()), allow_unused=True)
    for plain, with_term, slope in zip(*slopes, own):
        if plain is not None and slope is not None:
            assert torch.allclose(with_term, plain + 4000 * slope, rtol=1e-6, atol=1e-9)


def test_after_a_collapse_nothing_keeps_the_loss_straight_any_more():
    """The term belongs to one step: PGD-10 trains without it."""
    made, *_ = of_one_gradient(Threat("linf", "16/255"))
    assert made.attacker.straightens
    made.attacker.single = False
    assert not made.attacker.straightens


# --- looks at the validation images ----------------------------------------------------------------------------------


def test_validation_costs_at_most_a_tenth():
    assert between_looks(1294, 144, 60) == 4  # 31 * 144 / 4 <= 0.1 * 10 * 1294 < 31 * 144 / 3
    assert between_looks(10_000, 100, 60) == 1
    assert between_looks(1294, 144, 20) == 2  # but eight times in a run at least


def test_the_rate_rule_goes_on_without_looks():
    """Between two of them nothing is judged; the cooldown runs as with them, and begins and ends with a look."""
    rule = PairedRate(0.1, 20, every=3)
    looked = [epoch for epoch in range(1, 21) if _observe(rule, epoch)]
    assert looked == [3, 6, 9, 12, 15, 16, 18, 20]
    every = PairedRate(0.1, 20)
    for epoch in range(1, 21):
        _observe(every, epoch)
    assert rule.rate == every.rate


def test_a_state_that_fell_apart_before_the_cooldown_is_not_cooled():
    """Epoch 15 has all images right and is kept, epoch 16 none: nobody would have looked there."""
    rule = PairedRate(0.1, 20, every=3)
    for epoch in range(1, 17):
        right = [epoch < 16] * 8 if rule.wants(epoch) else None
        verdict = rule.observe(Measured(epoch, 8 * epoch, 0.5, right))
    assert verdict.cooling
    assert verdict.restore


def _observe(rule, epoch):
    wanted = rule.wants(epoch)
    right = [True, False, epoch % 2 == 0, True] if wanted else None
    verdict = rule.observe(Measured(epoch, 8 * epoch, 0.5, right))
    assert verdict.stop == (epoch == 20)
    return wanted


def test_an_epoch_without_a_look_has_empty_records_and_the_kept_state_is_one_that_was_seen():
    tuned = tune(epochs=17)
    seen = [record["val_robust"] is not None for record in tuned.history]
    assert seen[:4] == [False, True, False, True]
    assert seen[-1]
    assert seen[tuned.best_epoch - 1]


# --- the guard -------------------------------------------------------------------------------------------------------


def test_what_counts_as_a_collapse():
    stand, fall = [True] * 32, [False] * 32
    assert not collapsed([], stand, stand, stand)
    assert not collapsed(stand, stand[:28] + fall[:4], stand, stand)  # four of 32 is noise
    assert collapsed(stand, stand[:20] + fall[:12], stand, stand)  # surely fewer than the kept state has
    assert collapsed([], stand, stand, fall)  # one step is withstood, ten are not
    assert not collapsed([], stand, stand[:7] + fall[:25], fall)  # too few to say


def test_what_the_guard_sees_makes_it_go_back_and_on_with_pgd(monkeypatch):
    watched = []
    withstood = judgement.withstood

    def planted(learner, count):
        one, ten = withstood(learner, count)
        watched.append(len(one))
        return ([True] * count, [False] * count) if len(watched) == 2 else (one, ten)

    monkeypatch.setattr(judgement, "withstood", planted)
    tuned = tune(epochs=12)
    events = [record["event"] for record in tuned.history]
    (at,) = [i for i, event in enumerate(events) if event == "collapsed"]
    assert len(watched) == 2  # not asked any more
    assert tuned.history[at]["val_robust"] is not None
    assert tuned.best_epoch != at + 1


class Flat(nn.Module):
    """Small, and with enough weights at its end to fool one step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.wide, self.head = nn.Linear(32 * 6 * 6, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = self.norm(self.conv(self.stem(8 * (x - 0.5)).relu())).relu()
        return self.head(self.wide(x.flatten(1)).relu())


def pale_digits(start, stop):
    """Handwritten digits in three tenths of the range of greys: 16/255 is a fifth of what tells them apart."""
    digits = load_digits()
    x = torch.from_numpy(digits.images[start:stop]).float()[:, None].repeat(1, 3, 1, 1) / 16
    return 0.35 + 0.3 * F.interpolate(x, size=12, mode="bilinear"), torch.from_numpy(digits.target[start:stop])


def stands(model, x, y, steps):
    """The share that withstands signed steps from the image itself, written out."""
    eps, point = 16 / 255, x.clone()
    for _ in range(steps):
        point.requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(model(point), y), point)
        point = point.detach() + (eps if steps == 1 else eps / 4) * slope.sign()
        point = torch.min(torch.max(point, x - eps), x + eps).clamp(0, 1)
    return (model(point).argmax(1) == y).float().mean().item()


def of_pale_digits(train, schedule, eps="16/255"):
    torch.manual_seed(0)
    return finetune(
        Flat(), train, pale_digits(1500, 1600), Threat("linf", eps), method="madry", attack="single",
        **QUICK | {"reference": "best", "epochs": 16, "batch_size": 64, "rate": 0.05, "augmentation": "none"},
        eps_schedule=schedule,
    )  # fmt: skip


def test_a_rule_that_compares_scores_hears_of_the_kept_state(monkeypatch):
    """The published rule halves where the score rose too rarely: what came back is no epoch of score 0."""
    rule = AutoRate(0.1, 20)
    for epoch, score in enumerate((0.3, 0.2, 0.1), start=1):
        rule.observe(Measured(epoch, 8 * epoch, score, (True,)))
    assert not rule.observe(Measured(4, 32, 0.0, None)).best
    assert rule.trace.last == rule.trace.best == 0.3
    rises = rule.trace.rises
    rule.observe(Measured(5, 40, 0.25, (True,)))
    assert rule.trace.rises == 0  # of a checkpoint; before it, 0.25 was no rise over 0.3
    assert rises == 1
    monkeypatch.setattr(judgement, "withstood", lambda learner, count: ([True] * count, [False] * count))
    tuned = tune(reference="paper", epochs=6)
    assert [record["event"] for record in tuned.history if "collapsed" in record["event"]] == ["collapsed"]


def test_the_bend_is_not_asked_for_while_eps_grows(monkeypatch):
    """Its history of growing radii would make an outlier of every step."""
    asked = []
    bend = TrainingAttack.bend
    monkeypatch.setattr(TrainingAttack, "bend", lambda self, *on: asked.append(self.reach) or bend(self, *on))
    tune(epochs=8, eps_schedule="ramp", threat=Threat("linf", "16/255"))
    assert asked
    assert set(asked) == {1.0}


@pytest.mark.slow
def test_a_collapse_that_really_happens_is_caught(monkeypatch):
    """No noise and nothing that keeps the loss straight: the network learns to fool the one step."""
    monkeypatch.setattr(training_attack, "NOISE", 0.0)
    monkeypatch.setattr(training_attack, "STRAIGHT_UP_TO", 1.0)
    give_up, seen, train = judgement.give_up_single, {}, pale_digits(0, 1000)

    def watched(learner, done, right):
        model = copy.deepcopy(learner.model).eval()
        seen["one"], seen["ten"] = (stands(model, *train, steps) for steps in (1, 10))
        event = give_up(learner, done, right)
        seen["back"] = all(
            torch.equal(value, done.best["0"][name]) for name, value in learner.model.state_dict().items()
        )
        return event

    monkeypatch.setattr(judgement, "give_up_single", watched)
    tuned = of_pale_digits(train, "constant")
    (at,) = [record["epoch"] for record in tuned.history if record["event"] == "collapsed"]
    assert seen["one"] > 1.5 * seen["ten"]
    assert seen["back"]  # to the kept state
    fell, rose = (tuned.history[epoch - 1]["val_robust"] for epoch in (at, tuned.best_epoch))
    assert tuned.best_epoch > at  # on with PGD-10,
    assert rose > fell + 0.05  # which is worth it
    assert how(Finetune(), tuned)["collapsed"] == [at]


@pytest.mark.slow
def test_one_that_really_happens_while_eps_grows_is_caught(monkeypatch):
    monkeypatch.setattr(training_attack, "NOISE", 0.0)
    monkeypatch.setattr(training_attack, "STRAIGHT_UP_TO", 1.0)
    tuned = of_pale_digits(pale_digits(0, 1000), "ramp", "32/255")
    (at,) = [record["epoch"] for record in tuned.history if record["event"] == "collapsed"]
    assert 4 < at < 12  # eps has begun to grow, and is not whole
    assert tuned.history[at - 1]["val_robust"] is None


def test_a_collapse_is_seen_while_eps_grows_too(monkeypatch):
    asked = []

    def fooled(learner, count):
        asked.append(learner.attacker.reached().eps / THREAT.eps)
        return [True] * count, [False] * count

    monkeypatch.setattr(judgement, "withstood", fooled)
    tuned = tune(epochs=8, eps_schedule="ramp")
    assert [record["event"] for record in tuned.history][:5] == ["", "", "collapsed", "", ""]  # 0 for two epochs
    assert asked == pytest.approx([0.25])  # of the eps of the third epoch, and not asked any more
    assert tuned.history[2]["val_robust"] is None
    assert tuned.best_epoch >= 6


def test_the_guard_attacks_with_the_eps_of_the_epoch(monkeypatch):
    train, val = (tuple(map(torch.from_numpy, part)) for part in (images(32), images(12, 1)))
    learner = loop.Learner(network(), train, val, Settings(THREAT, reference="paper"), torch.device("cpu"))
    seen = []
    monkeypatch.setattr(measuring, "single_step", lambda view, x, y, threat, noise: seen.append(threat) or x)
    learner.attacker.reach = 0.5
    measuring.withstood(learner, 32)
    assert [threat.eps for threat in seen] == [THREAT.eps / 2]


def test_the_guard_looks_at_images_of_all_classes_where_they_come_class_by_class(monkeypatch):
    x, y = images(60)
    order = np.argsort(y, kind="stable")
    train, val = ((torch.from_numpy(x[order]), torch.from_numpy(y[order])), tuple(map(torch.from_numpy, images(12, 1))))
    learner = loop.Learner(network(), train, val, Settings(THREAT, reference="paper"), torch.device("cpu"))
    seen = []
    monkeypatch.setattr(measuring, "single_step", lambda view, x, y, threat, noise: seen.append(y) or x)
    measuring.withstood(learner, 32)
    assert torch.bincount(seen[0]).min() >= 10


def test_resuming_after_a_collapse_goes_on_with_pgd(tmp_path, monkeypatch):
    withstood = judgement.withstood
    monkeypatch.setattr(judgement, "withstood", lambda learner, count: ([True] * count, [False] * count))
    whole = tune(epochs=5, checkpoints=tmp_path / "whole")

    def stop(record):
        if record["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(epochs=5, checkpoints=tmp_path / "killed", on_epoch=stop)
    monkeypatch.setattr(judgement, "withstood", withstood)
    resumed = tune(epochs=5, checkpoints=tmp_path / "killed")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert [r["event"] for r in whole.history] == [r["event"] for r in resumed.history]
    assert "collapsed" in whole.history[0]["event"]


def test_a_collapse_in_the_last_epoch_of_an_early_cooldown_ends_training(monkeypatch):
    """Else it would go on at a rate of zero, and then below it."""
    monkeypatch.setattr(judgement, "withstood", lambda learner, count: ([True] * count, [False] * count))
    part = tuple(torch.as_tensor(p) for p in images(12))
    settings = Settings(THREAT, "madry", "best", attack="single", precision="float32", epochs=60)
    learner = Learner(network(), part, part, settings, torch.device("cpu"))
    learner.controller.cooling = 12  # a fifth of 60
    done = RunState(30, 30, best_epoch=1, best=learner.state(), kept=[True] * 12)
    assert judge_epoch(learner, done)[2] == "collapsed"
    assert done.stopped


def test_of_a_run_that_collapsed_at_once_it_is_known_what_was_right(monkeypatch):
    """Nothing was kept before: that state is, with its hits, which the guard compares with from then on."""
    monkeypatch.setattr(judgement, "withstood", lambda learner, count: ([True] * count, [False] * count))
    tuned = tune("madry", epochs=1)
    assert "collapsed" in tuned.history[0]["event"]
    assert sum(tuned.right) / 12 == tuned.best["val_robust"]
    assert len(tuned.right) == 12


@pytest.mark.parametrize(("one", "ten", "lost"), [(16, 8, False), (16, 7, True), (10, 4, False), (12, 4, True)])
def test_most_and_eight_at_least_must_fall_to_ten_steps(one, ten, lost):
    assert collapsed([], [], [True] * one + [False] * (32 - one), [True] * ten + [False] * (32 - ten)) == lost
