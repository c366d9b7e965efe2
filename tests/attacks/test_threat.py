"""A threat is a value: parsed once, written in both units, the same after a round trip."""

import json
import random

import pytest

from autolora import Threat
from autolora.threat import NORMS


@pytest.mark.parametrize(
    ("norm", "eps", "value", "text"),
    [
        ("l2", "1/3", 1 / 3, "l2:0.3333333333333333"),
        ("linf", 1e-9, 1e-9, "linf:1e-09"),
        ("linf", 0.0314, 0.0314, "linf:0.0314"),
        ("linf", "8/255", 8 / 255, "linf:8/255"),
        ("Linf", 8 / 255, 8 / 255, "linf:8/255"),
        ("linf", "0.5/255", 0.5 / 255, "linf:0.5/255"),
        ("linf", 0.03, 0.03, "linf:0.03"),
        ("l2", 0.5, 0.5, "l2:0.5"),
        ("l2", "1/2", 0.5, "l2:0.5"),
        ("l1", 12, 12.0, "l1:12"),
    ],
)
def test_parse_and_round_trip(norm, eps, value, text):
    threat = Threat(norm, eps)
    assert threat.eps == pytest.approx(value, abs=1e-12)
    assert str(threat) == text
    assert str(Threat.parse(text)) == text
    assert Threat.parse(text) == threat == Threat.from_record(json.loads(json.dumps(threat.as_record())))


def test_every_threat_comes_back_from_its_text():
    generator = random.Random(0)
    for _ in range(5000):
        norm = generator.choice(NORMS)
        top = 1.0 if norm == "linf" else 1000.0
        eps = generator.choice(
            [generator.uniform(0, top), 10 ** generator.uniform(-12, 0), generator.randrange(1, 1021) / 1020]
        )
        threat = Threat(norm, eps)
        assert Threat.parse(str(threat)) == threat == Threat.from_record(threat.as_record())


def test_both_units_are_recorded():
    assert Threat("linf", "8/255").as_record() == {"norm": "linf", "eps": 8 / 255, "eps_255": 8.0, "text": "linf:8/255"}


@pytest.mark.parametrize(
    ("norm", "eps", "words"),
    [
        ("linf", 8, "8/255"),
        ("linf", 0, "larger than 0"),
        ("linf", "x", "fraction"),
        ("linf", "8/255/2", "fraction"),
        ("l3", 1, "linf, l2, l1"),
        ("l2", "nan", "fraction"),
    ],
)
def test_an_impossible_threat_says_why(norm, eps, words):
    with pytest.raises(ValueError, match=words):
        Threat(norm, eps)


def test_it_is_a_value():
    assert Threat("linf", "8/255") == Threat("linf", 8 / 255)
    assert len({Threat("linf", "8/255"), Threat("linf", 8 / 255)}) == 1
    with pytest.raises(AttributeError):
        Threat("linf", "8/255").eps = 1
