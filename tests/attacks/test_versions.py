"""What each version runs: every attack with its loss, its steps, its targets or restarts, and the copy it may use."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from autolora import Threat
from autolora.attacks.apgd import APGD, cross_entropy, dlr, probability_margin, targeted_dlr
from autolora.attacks.apgd_l1 import APGDL1
from autolora.attacks.engine.network import Network
from autolora.attacks.engine.prepare import likely
from autolora.attacks.engine.slots import Slots, State
from autolora.attacks.fab import FAB, TargetedFAB
from autolora.attacks.square import SquareL1, SquareL2, SquareLinf
from autolora.attacks.versions import plan_of
from autolora.data.images import TestImages

LOSS = {cross_entropy: "ce", dlr: "dlr", targeted_dlr: "t", probability_margin: "pm"}


def plan(version: str, norm: str = "linf", classes: int = 10) -> list[tuple]:
    """(name, kind, loss, evaluations, passes, attempts, copy) of each attack."""
    network, threat = Network(lambda x: x, 8), Threat(norm, 0.01)
    rows = []
    for step in plan_of(version, norm, classes)[0]:
        attack = step.attack(network, threat)
        loss = LOSS.get(getattr(attack, "loss", None), "")
        samples = getattr(attack, "samples", 1)
        rows.append(
            (step.name, type(attack), loss, attack.rounds, samples, step.attempts, "half" if step.half else "full")
        )
    return rows


def test_standard_is_that_of_the_paper() -> None:
    for norm, square in (("linf", SquareLinf), ("l2", SquareL2)):
        assert plan("standard", norm) == [
            ("apgd-ce", APGD, "ce", 101, 1, 1, "half"),
            ("apgd-t", APGD, "t", 101, 1, 9, "full"),
            ("fab-t", TargetedFAB, "", 100, 1, 9, "half"),
            ("square", square, "", 5001, 1, 1, "full"),
        ]


def test_standard_for_l1() -> None:
    assert plan("standard", "l1") == [
        ("apgd-ce", APGDL1, "ce", 103, 1, 5, "half"),
        ("apgd-t", APGDL1, "t", 103, 1, 5, "full"),
        ("fab-t", TargetedFAB, "", 100, 1, 9, "half"),
        ("square", SquareL1, "", 5001, 1, 1, "full"),
    ]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_strong_goes_on_where_standard_ends(norm: str) -> None:
    """Standard's own steps, by name (draws belong to it) and number: so strong is never higher."""
    kind, evaluations, restarts = (APGDL1, 103, 5) if norm == "l1" else (APGD, 101, 1)
    assert plan("strong", norm)[:4] == plan("standard", norm)
    assert plan("strong", norm)[4:] == [
        ("apgd-malt", kind, "t", evaluations, 1, 9, "full"),
        ("apgd-pm", kind, "pm", evaluations, 1, restarts, "full"),
    ]
    assert [[s.ranked for s in plan_of("strong", norm, c)[0] if s.name == "apgd-malt"] for c in (3, 4, 10, 500)] == [
        [], [3], [9], [100],
    ]  # fmt: skip
    assert not any(s.ranked for v in ("standard", "plus", "fast", "rand") for s in plan_of(v, norm, 500)[0])


def test_plus_rand_and_fast() -> None:
    assert plan("plus") == [
        ("apgd-ce", APGD, "ce", 101, 1, 5, "half"),
        ("apgd-dlr", APGD, "dlr", 101, 1, 5, "half"),
        ("fab", FAB, "", 100, 1, 5, "half"),
        ("square", SquareLinf, "", 5001, 1, 1, "full"),
        ("apgd-t", APGD, "t", 101, 1, 9, "full"),
        ("fab-t", TargetedFAB, "", 100, 1, 9, "full"),  # the last one
    ]
    assert [row[:6] for row in plan("rand")] == [
        ("apgd-ce", APGD, "ce", 101, 20, 1),
        ("apgd-dlr", APGD, "dlr", 101, 20, 1),
    ]
    assert plan("fast") == [("apgd-ce", APGD, "ce", 101, 1, 1, "half"), ("apgd-t", APGD, "t", 101, 1, 9, "full")]


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 2)])
@pytest.mark.parametrize("version", ["standard", "plus", "strong", "fast", "rand"])
def test_with_few_classes_no_white_box_attack_is_in_bfloat16(version: str, classes: int, targets: int) -> None:
    """The targeted APGD, which is the one in float32 otherwise, needs four."""
    rows = plan(version, classes=classes)
    assert not {"apgd-t", "apgd-malt"} & {row[0] for row in rows}
    assert {row[6] for row in rows if row[0] != "square"} == {"full"}
    assert all(row[5] == targets for row in rows if row[0] == "fab-t")


def test_each_attempt_is_at_another_class_most_likely_first() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 2.0, 0.0]])
    y = torch.tensor([1, 2])
    assert likely(logits, y).tolist() == [[3, 2, 0], [0, 1, 3]]
    asked: list[tuple[list[int], list[int]]] = []
    drawn: list[int] = []

    class Asked:
        rounds = 1

        def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
            asked.append((attempts.tolist(), target.tolist()))
            drawn.extend(keys.tolist())
            return {"x": x}

        def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(s["x"]), dtype=torch.bool), s["x"]

    images = TestImages.of(torch.rand(2, 3, 2, 2), y)
    jobs = [(image, attempt) for attempt in range(3) for image in range(2)]
    Slots(Asked(), images, likely(logits, y), name="asked", seed=0, batch=6).run(jobs, lambda job, point: None)
    assert asked == [([0, 0, 1, 1, 2, 2], [3, 0, 2, 1, 0, 3])]
    assert len(set(drawn)) == 6  # a restart begins elsewhere


def test_a_row_that_waits_for_no_other_has_all_its_steps() -> None:
    """In two slots: the first image breaks at its first step, the second never, and the third at its last one."""

    class Breaks:
        rounds = 3

        def start(self, x: Tensor, y: Tensor, target: Tensor, keys: Tensor, attempts: np.ndarray) -> State:
            return {"x": x, "at": (x[:, 0, 0, 0] * 255).round()}

        def step(self, s: State, age: np.ndarray) -> tuple[Tensor, Tensor]:
            return torch.from_numpy(age + 1) == s["at"], s["x"]

    images = TestImages.of(np.full((3, 3, 2, 2), np.uint8([1, 9, 3])[:, None, None, None]), [0, 0, 0])
    broken: dict[int, bool] = {}
    slots = Slots(Breaks(), images, torch.zeros(3, 1, dtype=torch.long), name="breaks", seed=0, batch=2)
    slots.run([(image, 0) for image in range(3)], lambda job, point: broken.update({job[0]: point is not None}))
    assert broken == {0: True, 1: False, 2: True}
