"""Where images go: fixed by seed and content, in the shares asked for, and mendable where a class stays empty."""

from __future__ import annotations

import hashlib

import pytest

from stages.dataset.splits import draw, fraction_that_would_do, place

NAMES = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]


def split(name, given=None, parts=frozenset(), seed=0):
    return draw(seed, name, given, set(parts), 0.05, 0.2)


def test_shares_hold_in_expectation():
    found = [split(name) for name in NAMES]
    assert found.count("test") / len(NAMES) == pytest.approx(0.2, abs=0.012)  # four standard deviations
    assert found.count("val") / (len(NAMES) - found.count("test")) == pytest.approx(0.05, abs=0.007)


def test_another_seed_is_another_draw():
    same = sum(split(name) == split(name, seed=1) for name in NAMES) / len(NAMES)
    independent = 0.2**2 + 0.04**2 + 0.76**2
    assert same == pytest.approx(independent, abs=0.015)


def test_what_the_data_set_brings_is_kept():
    for name in NAMES[:500]:
        assert split(name, "test", {"train", "test"}) == "test"
        assert split(name, "train", {"train", "test"}) in ("train", "val")
        assert split(name, "train", {"train", "val", "test"}) == "train"
    for name in NAMES[:500]:  # where some are given no split, these are drawn, and the given ones stay
        assert split(name, "train", {"train", None}) == "train"
        assert split(name, None, {"train", "test", None}) == split(name, None, {None}) == split(name)
    assert {split(name, "train", {"train", "val"}) for name in NAMES[:500]} == {"train", "test"}


def test_the_fraction_that_would_do_does_and_the_next_smaller_does_not():
    classes = [NAMES[:7], NAMES[7:18], NAMES[18:22]]
    fraction = fraction_that_would_do(3, classes, "val")
    assert all(any(place(3, n, "val") < fraction for n in members) for members in classes)
    assert not all(any(place(3, n, "val") < fraction - 0.01 for n in members) for members in classes)
    assert fraction_that_would_do(3, [*classes, []], "val") > 1
