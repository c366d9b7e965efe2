"""docs/extending.md: its code is run, as it stands there."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import autolora
from autolora.attacks.autoattack import run_plan
from autolora.attacks.evaluation import Settings, opened
from autolora.data.images import TestImages
from autolora.training import objectives
from autolora.training.controllers import Measured, Verdict
from stages.dataset import sources
from tests.house.imports import ROOT, own_imports
from tests.house.test_graph import PLUMBING

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def block(heading: str, language: str = "python") -> str:
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def ran(heading: str) -> dict:
    names: dict = {"__name__": "extending"}
    exec(compile(block(heading), heading, "exec"), names)
    return names


@pytest.fixture
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that a linear network tells apart: dark and bright images."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 2
    return (torch.rand(64, 3, 4, 4, generator=generator) * 0.2 + 0.6 * y.view(-1, 1, 1, 1)), y


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(48, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.features(x.flatten(1))))


def test_the_method_trains(monkeypatch, digits):
    monkeypatch.setitem(objectives.METHODS, "pairing", objectives.METHODS["natural"])  # and gone after the test
    ran("A method of fine-tuning")
    threat = autolora.Threat("linf", 0.05)
    settings = {"method": "pairing", "epochs": 8, "batch_size": 16, "augmentation": "none"}
    tuned = autolora.finetune(Small(), digits, digits, threat, **settings)
    losses = [record["loss"] for record in tuned.history]
    assert losses[-1] < losses[0]
    assert 0 < tuned.history[-1]["loss_adversarial"] < losses[-1]


class EveryOther:
    """A rule of the learning rate with what the page asks for, and no more: a tenth after each epoch that was seen."""

    heard: ClassVar[list] = []

    def __init__(self, rate: float, epochs: int) -> None:
        self.rate = rate

    def wants(self, epoch: int) -> bool:
        return epoch % 2 == 0

    def observe(self, measured: Measured) -> Verdict:
        self.heard.append((measured.epoch, measured.right is not None))
        self.rate /= 10 if measured.right is not None else 1
        return Verdict(best=measured.right is not None)

    def state(self) -> dict:
        return {"rate": self.rate}

    def load(self, state: dict) -> None:
        self.rate = state["rate"]


def test_the_rule_of_the_learning_rate_trains_and_resumes(monkeypatch, digits, tmp_path):
    sentence = TEXT.split("A learning-rate rule is a class with ")[1].split("(")[0]
    own = {name for name in vars(EveryOther) if not name.startswith("_")} - {"heard"}
    assert set(re.findall(r"`(\w+)`", sentence)) == {"rate", *own}
    monkeypatch.setattr(EveryOther, "heard", [])
    mine = dataclasses.replace(objectives.REFERENCES["best"], controller=EveryOther)
    monkeypatch.setitem(objectives.REFERENCES, "mine", mine)
    model, threat = Small(), autolora.Threat("linf", 0.05)
    run = {"method": "madry", "epochs": 8, "batch_size": 16, "augmentation": "none", "rate": 0.1, "reference": "mine"}
    run |= {"eps_schedule": "ramp", "checkpoints": tmp_path}

    def stop(record: dict) -> None:
        if record["epoch"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        autolora.finetune(model, digits, digits, threat, **run, on_epoch=stop)
    tuned = autolora.finetune(model, digits, digits, threat, **run)
    assert EveryOther.heard == [(epoch, epoch in (6, 8)) for epoch in range(1, 9)]  # eps is whole from epoch 6 on
    assert [record["lr"] for record in tuned.history] == pytest.approx([0.1] * 6 + [0.01] * 2)


def test_the_source_finds_images_in_order(monkeypatch, tmp_path):
    monkeypatch.setitem(sources.SOURCES, "named", sources.SOURCES["folder"])
    named = ran("A source of images")["SOURCES"]["named"]
    for name in ("tabby-cat-2", "dog-1", "tabby-cat-1", "nameless"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{name}.png")
    found = list(named(tmp_path))
    assert [(one.path, one.label) for one in found if not one.reason] == [
        ("dog-1.png", "dog"),
        ("tabby-cat-1.png", "tabby-cat"),
        ("tabby-cat-2.png", "tabby-cat"),
    ]
    assert [one.path for one in found if one.content is None] == ["nameless.png"]
    assert all(before.path < after.path for before, after in pairwise(found))


def test_the_stage_writes_its_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "metrics.json").write_text(json.dumps({"clean": 0.98, "robust": 0.875}))
    ran("A stage")["summarise"]()
    assert (tmp_path / "reports" / "summary.txt").read_text() == "clean 98%, robust 88%\n"
    assert (tmp_path / "reports" / "timing" / "summarise.json").exists()


def test_the_stages_deps_are_what_it_imports(tmp_path):
    """What lies behind them is the house's: tests/house/test_graph.py prints it."""
    (stage,) = yaml.safe_load(block("A stage", "yaml")).values()
    file = tmp_path / "summarise.py"
    file.write_text(block("A stage"))
    code = f"{stage['cmd'].removeprefix('python -m ').replace('.', '/')}.py"
    imported = {str(path) for path in own_imports(file) - PLUMBING}
    assert {dep for dep in stage["deps"] if dep.endswith(".py")} == imported | {code}


def test_the_attack_breaks_what_it_can(digits):
    """A linear network: the worst point is known, a full step of every pixel against its weight."""
    x, y = digits
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-0.02], [0.02]]).expand(2, 48))
        model[1].bias.copy_(torch.tensor([0.4, -0.4]))
    threat = autolora.Threat("linf", 0.3)
    images, plan = TestImages.of(x, y), (lambda classes: ([ran("An attack")["step"]], None))
    with opened(model.eval(), images, threat, Settings(seed=0, show=False)) as e:
        report = run_plan(e, plan)
    worst = (x + threat.eps * (1 - 2 * y).view(-1, 1, 1, 1)).clamp(0, 1)
    stands = model(worst).argmax(1) == y
    assert 0 < stands.sum() < len(y)
    assert torch.equal(report.robust, stands)
