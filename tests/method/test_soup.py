"""Soups against sums written out: equal members, any order, Model Stock's ratio, what greedy may take."""

from __future__ import annotations

import copy
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autolora.training.branch import add_branch
from autolora.training.dial import Point
from autolora.training.soup import Member, agreement, greedy, score, stock, uniform
from tests.export.nets import tiny

WEIGHT = "body.block.0.weight"


def member(seed: int) -> Member:
    delta = torch.randn(tiny(0).state_dict()[WEIGHT].shape, generator=torch.Generator().manual_seed(seed))
    return Member(tiny(seed), {WEIGHT: delta})


def state(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict()


def test_equal_members_are_their_own_soup_to_the_bit() -> None:
    one = member(0)
    for soup in (uniform([one] * 3), stock(tiny(1), [one] * 3)):
        assert all(torch.equal(value, state(one.network)[name]) for name, value in state(soup.network).items())
        assert torch.equal(soup.deltas[WEIGHT].float(), one.deltas[WEIGHT])


def test_uniform_is_the_mean_in_any_order_and_counters_stay() -> None:
    members = [member(seed) for seed in range(3)]
    for i, m in enumerate(members):
        m.network.body.norm.num_batches_tracked.fill_(5 + i)
    soup, turned = uniform(members), uniform(members[::-1])
    for name, value in state(soup.network).items():
        if value.is_floating_point():
            mean = np.mean([state(m.network)[name].double().numpy() for m in members], 0)
            assert np.allclose(value, mean, rtol=1e-6, atol=1e-7)
            assert torch.equal(value, state(turned.network)[name])
    assert soup.network.body.norm.num_batches_tracked == 5
    assert not torch.equal(
        state(soup.network)["body.norm.running_var"], state(members[0].network)["body.norm.running_var"]
    )


def test_the_branch_is_mixed_as_the_weights_are() -> None:
    """alpha = 1 of the soup is the soup of the natural branches."""
    members = [member(seed) for seed in range(3)]
    branches = [Member(add_branch(m.network, m.deltas, 1.0), {}) for m in members]
    soup, naturals = uniform(members), uniform(branches)
    ours = add_branch(soup.network, soup.deltas, 1.0)
    assert torch.allclose(state(ours)[WEIGHT], state(naturals.network)[WEIGHT], atol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_agreement_is_the_published_ratio(n: int) -> None:
    """Ways with a planted common part: unit vectors a * common + b * own have the cosine a^2 in every pair."""
    start, c = torch.randn(n + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), 0.3
    ways = [sqrt(c) * torch.eye(n + 1)[n] + sqrt(1 - c) * torch.eye(n + 1)[i] for i in range(n)]
    ends = [start + (i + 1) * way for i, way in enumerate(ways)]  # their lengths do not matter
    assert agreement(start, ends) == pytest.approx(n * c / (1 + (n - 1) * c))


def test_agreement_at_its_ends() -> None:
    start, way = torch.zeros(4), torch.eye(4)
    assert agreement(start, [way[0], 3 * way[0]]) == pytest.approx(1)
    assert agreement(start, [way[0], way[1]]) == 0
    assert agreement(start, [way[0], -way[0]]) == 0  # never beyond the start
    assert agreement(start, [way[0], start]) == 0


def test_stock_lies_between_the_start_and_the_mean() -> None:
    start, members = tiny(9), [member(0), member(1)]
    soup = stock(start, members)
    before, a, b = state(start)[WEIGHT], *(state(m.network)[WEIGHT] for m in members)
    c = torch.cosine_similarity((a - before).flatten(), (b - before).flatten(), dim=0)
    t = 2 * c / (1 + c)
    assert 0.1 < t < 0.9
    assert torch.allclose(state(soup.network)[WEIGHT], t * (a + b) / 2 + (1 - t) * before, atol=1e-5)
    assert torch.allclose(
        soup.deltas[WEIGHT].float(), t * (members[0].deltas[WEIGHT] + members[1].deltas[WEIGHT]) / 2, atol=1e-5
    )
    head = [state(m.network)["body.fc.weight"] for m in members]
    assert torch.allclose(state(soup.network)["body.fc.weight"], sum(head) / 2, atol=1e-6)


def flags(clean: list[int], robust: list[int], n: int = 200) -> Point:
    return Point("soup", 0.0, *(np.isin(np.arange(n), np.arange(*span)) for span in (clean, robust)))


def taken(table: dict[tuple[int, ...], Point]) -> tuple[int, ...]:
    members = [member(seed) for seed in range(3)]
    return greedy(members, lambda chosen: table[chosen]).members


def test_greedy_starts_with_the_best_and_takes_what_raises_the_score() -> None:
    alone = {(0,): flags([0, 100], [0, 60]), (1,): flags([0, 110], [0, 70]), (2,): flags([0, 90], [0, 50])}
    better, worse, equal = flags([0, 115], [0, 75]), flags([0, 100], [0, 70]), flags([0, 110], [0, 70])
    assert taken(alone | {(0, 1): better, (0, 1, 2): worse}) == (0, 1)
    assert taken(alone | {(0, 1): equal, (1, 2): better}) == (1, 2)  # a tie adds nothing
    assert taken(alone | {(0, 1): worse, (1, 2): worse}) == (1,)


def test_greedy_does_not_pay_one_accuracy_with_the_other() -> None:
    """20 images more are right as they are, and 6 fewer under attack: the score rises, and the fall is sure."""
    alone = {(i,): flags([0, 100], [0, 60 - i]) for i in range(3)}
    dear, cheap = flags([0, 120], [0, 54]), flags([0, 120], [0, 58])
    assert score(dear) > score(alone[0,])
    assert taken(alone | {(0, 1): dear, (0, 2): dear}) == (0,)
    assert taken(alone | {(0, 1): cheap, (0, 1, 2): dear}) == (0, 1)


def test_greedy_asks_whether_the_soup_falls_that_there_is_so_far() -> None:
    """Eight fewer under attack than with two members, and two more than the best one alone."""
    alone = {(i,): flags([0, 100], [0, 60 - i]) for i in range(3)}
    two, three = flags([0, 100], [0, 70]), flags([0, 120], [0, 62])
    assert score(three) > score(two)
    assert taken(alone | {(0, 1): two, (0, 1, 2): three}) == (0, 1)


@pytest.mark.parametrize("seed", range(20))
def test_greedy_is_never_below_the_best_single_one_on_its_score(seed: int) -> None:
    draw, table = np.random.default_rng(seed), dict[tuple[int, ...], Point]()

    def measure(chosen: tuple[int, ...]) -> Point:
        clean = draw.random(100) < draw.uniform(0.4, 0.6)
        return table.setdefault(chosen, Point("soup", 0.0, clean, clean & (draw.random(100) < 0.7)))

    soup = greedy([member(i) for i in range(4)], measure)
    assert score(table[soup.members]) >= max(score(table[i,]) for i in range(4))


def test_members_are_not_changed() -> None:
    members = [member(0), member(1)]
    before = [copy.deepcopy(state(m.network)) for m in members]
    uniform(members), stock(tiny(2), members)
    for old, m in zip(before, members):
        assert all(torch.equal(value, state(m.network)[name]) for name, value in old.items())
