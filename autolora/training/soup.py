"""Soups: one network from several that were fine-tuned from one start. It costs no more to run than one of them.

    uniform   the mean of all members                                                      (Wortsman et al., 2022)
    greedy    the best member, and each further one that the mean is the better for        (the same, with our test)
    stock     per tensor t * mean + (1 - t) * theta0, t = N c / (1 + (N - 1) c), c the mean cosine between the members'
              ways from the start theta0                                                   (Jang et al., 2024)

Batch norm's running means and variances are averaged as weights are. They are not measured again: on clean images they
would be those of another network than the one that was trained on attacked ones as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor, nn

from autolora.training.branch import head_parameters
from autolora.training.controllers import SURE, rise
from autolora.training.dial import Point

State = dict[str, Tensor]
Measure = Callable[[tuple[int, ...]], Point]  # of the mean of these members, on the validation part


class Soup(NamedTuple):
    network: nn.Module
    members: tuple[int, ...]  # that went into it, from 0
    deltas: State  # BA of each layer, mixed as the weights were


class Member(NamedTuple):
    network: nn.Module
    deltas: State  # BA of each layer; empty without a branch


def uniform(members: Sequence[Member], chosen: Sequence[int] | None = None) -> Soup:
    """The mean of the chosen ones; counters of batch norm stay the first one's."""
    taken = tuple(range(len(members)) if chosen is None else sorted(chosen))
    some = [members[i] for i in taken]
    return Soup(_filled(some, _mean([_floats(m.network) for m in some])), taken, _mean([m.deltas for m in some]))


def greedy(members: Sequence[Member], measure: Measure) -> Soup:
    """Members join in the order of their score, while the score of the mean rises, and neither accuracy surely falls.

    The score counts each validation image twice: clean, and under attack. Whether an accuracy falls is asked by a
    paired test on the same images, against the soup without the newcomer.
    """
    alone = [measure((i,)) for i in range(len(members))]
    first, *others = sorted(range(len(members)), key=lambda i: -score(alone[i]))  # ties: the earlier one
    taken: tuple[int, ...] = (first,)
    best = alone[first]
    for i in others:
        more = tuple(sorted((*taken, i)))
        if score(point := measure(more)) > score(best) and not surely_worse(best, point):
            taken, best = more, point
    return uniform(members, taken)


def score(point: Point) -> int:
    return int(point.counts.sum())


def surely_worse(before: Point, now: Point) -> bool:
    return any(
        rise(a.tolist(), b.tolist()) < -SURE for a, b in ((before.clean, now.clean), (before.robust, now.robust))
    )


def stock(start: nn.Module, members: Sequence[Member]) -> Soup:
    """Between the start and the mean, nearer to the mean where the members agree on the way (t in [0, 1]).

    The head is the mean: it started as noise, or as another task's, and nothing should draw it back there.
    """
    theta0, states, head = _floats(start), [_floats(m.network) for m in members], head_parameters(start)
    t = {n: 1.0 if n in head else agreement(theta0[n], [state[n] for state in states]) for n in theta0}
    mixed = {n: t[n] * mean + (1 - t[n]) * theta0[n].double() for n, mean in _mean(states).items()}
    deltas = {n: t[n] * mean for n, mean in _mean([m.deltas for m in members]).items()}  # theta0 has no branch
    return Soup(_filled(members, mixed), tuple(range(len(members))), deltas)


def agreement(start: Tensor, ends: Sequence[Tensor]) -> float:
    """t of a tensor: 1 where all go the same way, 0 where the ways have nothing in common, or nothing has moved."""
    ways = [(end.double() - start.double()).flatten() for end in ends]
    lengths = [way.norm() for way in ways]
    if min(lengths) == 0:
        return 0.0
    cosines = [ways[i] @ ways[j] / (lengths[i] * lengths[j]) for i, j in combinations(range(len(ways)), 2)]
    c, n = float(torch.stack(cosines).mean()), len(ways)
    return min(1.0, n * c / (1 + (n - 1) * c)) if c > 0 else 0.0


def _floats(model: nn.Module) -> State:
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


def _mean(states: Sequence[State]) -> State:
    """In float64: equal members give themselves, and their order does not matter."""
    return {name: sum(s[name].double() for s in states) / len(states) for name in states[0]}  # type: ignore[misc]


@torch.no_grad()
def _filled(members: Sequence[Member], state: State) -> nn.Module:
    network = copy.deepcopy(members[0].network).eval()
    for name, value in network.state_dict().items():
        if name in state:
            value.copy_(state[name])
    return network.requires_grad_(False)
