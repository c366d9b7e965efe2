"""The two automatisms against hand-traced sequences, and against a rule that is recomputed from the whole list."""

import random

import pytest

from autolora.training.controllers import (
    AutoRate,
    Measured,
    PairedRate,
    SlowStart,
    StepRate,
    checkpoints,
    scalars,
    stalled_as_published,
    stalled_as_released,
)
from autolora.training.loop import finetune
from tests.method.small import QUICK, THREAT, images, network
from tests.oracle.controller import decisions

RULES = {"paper": stalled_as_published, "released": stalled_as_released}


def run(accuracies, epochs=60, rule="paper"):
    """[(epoch, event without 'best', next rate)] where something happened."""
    controller, out = AutoRate(0.01, epochs, RULES[rule]), []
    for epoch, accuracy in enumerate(accuracies, 1):
        verdict = controller.observe(Measured(epoch, epoch, accuracy))
        event = "+".join(w for w in verdict.event.split("+") if w not in ("best", ""))
        if event:
            out.append((epoch, event, controller.rate))
        if verdict.stop:
            return [*out, (epoch, "stop", controller.rate)]
    return out


def test_lambdas():
    assert scalars(0.0) == (1.0, 0.0)  # almost pure natural training of branch and head
    assert scalars(1.0) == (0.0, 6.0)  # almost pure adversarial training and distillation
    assert scalars(0.25) == (0.75, 1.5)
    assert scalars(0.5, power=2, ceiling=4) == (0.75, 1.0)


def test_checkpoints_of_sixty_epochs():
    assert checkpoints(60) == [5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57]


@pytest.mark.parametrize(
    ("epochs", "expected"), [(4, []), (5, []), (6, [5]), (9, [5]), (10, [5, 9]), (30, [5, 9, 13, 17, 21, 25, 29])]
)
def test_checkpoints_of_other_lengths_are_the_same_without_the_last_epoch(epochs, expected):
    assert checkpoints(epochs) == expected


@pytest.mark.parametrize("rule", RULES)
def test_steady_progress_is_left_alone(rule):
    assert run([e / 100 for e in range(60)], rule=rule) == []


@pytest.mark.parametrize("rule", RULES)
def test_no_progress_stops_at_epoch_41(rule):
    events = run([0.5] * 60, rule=rule)
    assert [epoch for epoch, event, _ in events if event == "halved+restored"] == [5, 9, 13, 17, 21, 25, 29, 33, 37, 41]
    assert events[-1] == (41, "stop", 0.01 / 1024)


def test_three_rises_of_four_are_enough_and_two_are_not():
    enough = [0.10, 0.20, 0.30, 0.25, 0.40]  # rises at 2, 3, 5
    assert run(enough) == []
    few = [0.10, 0.20, 0.15, 0.12, 0.40]  # rises at 2 and 5; epoch 5 itself is the best: nothing to restore
    assert run(few) == [(5, "halved", 0.005)]


#            epoch 1   2   3   4   5 | 6   7   8   9 | 10  11  12  13 | 14  15  16  17
WITHOUT_A_NEW_BEST = [10, 20, 30, 40, 50, 20, 30, 40, 45, 20, 30, 40, 48, 20, 30, 40, 49]


def test_second_condition_as_published():
    """Rises hold three times of four everywhere, the best stays at 50. At 9: not halved at 5, best not risen: halve.
    At 13: halved at 9, so the condition is off. At 17: not halved at 13: halve."""
    assert run(WITHOUT_A_NEW_BEST) == [(9, "halved+restored", 0.005), (17, "halved+restored", 0.0025)]


def test_second_condition_as_released():
    """The same list: from the second checkpoint on, every one without a new best halves."""
    assert run(WITHOUT_A_NEW_BEST, rule="released") == [
        (9, "halved+restored", 0.005),
        (13, "halved+restored", 0.0025),
        (17, "halved+restored", 0.00125),
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(40))
def test_random_sequences_equal_the_recomputed_rule(rule, seed):
    draw = random.Random(seed)
    epochs = draw.choice([60, 60, 30, 97])
    accuracies, level = [], 0.2
    for _ in range(epochs):
        level += draw.choice([0.0, 0.01, 0.02])
        accuracies.append(round(level + draw.gauss(0, draw.choice([0.0, 0.01, 0.05])), 3))
    assert run(accuracies, epochs, rule) == decisions(accuracies, epochs, rule == "released")


def test_a_controller_goes_on_from_its_state():
    draw = random.Random(1)
    accuracies = [draw.random() for _ in range(40)]
    whole, first = AutoRate(0.01, 60), AutoRate(0.01, 60)
    for epoch, accuracy in enumerate(accuracies, 1):
        expected = whole.observe(Measured(epoch, epoch, accuracy))
        second = AutoRate(0.01, 60)
        second.load(first.state())
        assert second.observe(Measured(epoch, epoch, accuracy)) == expected
        first = second


@pytest.mark.parametrize(("epochs", "first", "second"), [(60, 30, 50), (30, 15, 25), (12, 6, 10)])
def test_step_schedule(epochs, first, second):
    controller, rates = StepRate(0.01, epochs), []
    for epoch in range(1, epochs + 1):
        rates.append(controller.rate)
        controller.observe(Measured(epoch, epoch, 0.5))
    assert rates == pytest.approx([0.01] * first + [0.001] * (second - first) + [0.0001] * (epochs - second))


@pytest.mark.parametrize("rule", [StepRate, SlowStart])
def test_an_epoch_that_nobody_looked_at_is_not_the_best(rule):
    """While eps grows: its score of 0 would be no worse than the first one that is seen."""
    controller = rule(0.01, 4)
    assert not controller.observe(Measured(1, 1, 0.0, None)).best
    assert controller.observe(Measured(2, 2, 0.0, (False,))).best


@pytest.mark.parametrize("rule", [StepRate, SlowStart])
def test_a_schedule_goes_on_from_its_state(rule):
    scores = [0.1, 0.5, 0.4, 0.3, 0.6, 0.2, 0.1, 0.7]
    whole, first = rule(0.01, 8), rule(0.01, 8)
    for epoch, score in enumerate(scores, start=1):
        expected = whole.observe(Measured(epoch, epoch, score))
        second = rule(0.01, 8)
        second.load(first.state())
        assert (second.observe(Measured(epoch, epoch, score)), second.rate) == (expected, whole.rate)
        first = second


@pytest.mark.parametrize("rule", [AutoRate, StepRate, SlowStart])
def test_of_equal_epochs_the_earlier_is_kept(rule):
    controller = rule(0.01, 60)
    scores = [0.0, 0.5, 0.5, 0.4, 0.6]
    kept = [controller.observe(Measured(epoch, epoch, score)).best for epoch, score in enumerate(scores, start=1)]
    assert kept == [True, True, False, False, True]


def test_a_cooldown_that_begins_early_ends_with_a_look_too():
    """A plateau: the slowest state, after the last epoch of the cooldown, is compared with what was kept."""
    rule, looked, epoch, stop = PairedRate(0.1, 55, every=2), [], 0, False
    while not stop:
        epoch += 1
        looked.append(rule.wants(epoch))
        stop = rule.observe(Measured(epoch, 100 * epoch, 0.5, [True, False] if looked[-1] else None)).stop
    assert epoch == 16 + 11  # no multiple of `every`, and not the last of 55
    assert looked[-1]


def test_the_cooldown_begins_on_time_where_the_guard_went_back():
    assert PairedRate(0.1, 20).observe(Measured(16, 160, 0.0, None)).cooling


def test_the_loss_weights_are_those_of_the_branch_on_all_training_images():
    tuned = finetune(network(), images(48), images(12, 1), THREAT, method="autolora", **QUICK | {"epochs": 6})
    assert any(record["natural_accuracy"] != record["batch_accuracy"] for record in tuned.history[:-1])
    for before, now in zip(tuned.history, tuned.history[1:]):
        assert now["lambda1"] == pytest.approx(1 - before["natural_accuracy"])
        assert now["lambda2"] == pytest.approx(6 * before["natural_accuracy"])
