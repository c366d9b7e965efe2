"""What evaluate.also leaves in the record, the flags and the folder of progress."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from autolora import Threat, autoattack
from autolora.attacks import checks
from autolora.attacks.eps_curve import Point
from autolora.attacks.evaluation import Settings
from autolora.attacks.under_corruptions import under_corruptions
from autolora.attacks.verdicts import Check
from autolora.attacks.versions import Budget
from autolora.backbones.classifier import load_classifier
from autolora.common.files import read_json
from autolora.common.statistics import wilson
from autolora.data.sample import read_images, stratified
from pipelines.registry.gates import also_findings
from stages import evaluate as stage
from stages.common.params import Gates
from tests.stages.test_evaluate import workspace  # noqa: F401

ALSO = ["l2:0.8", "linf:16/255", "corruptions"]
LITTLE = Budget(steps=3)


def run(also: list[str]) -> tuple[dict, np.ndarray]:
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["evaluate"] = {"version": "fast", "images": 8, "also": also}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    stage.evaluate()
    return read_json("reports/robustness.json"), np.load("reports/robust_flags.npy")


@pytest.fixture(autouse=True)
def quick(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """One process, and attacks of a few steps."""
    monkeypatch.setenv("AUTOLORA_PROCESSES", "1")
    monkeypatch.setattr(stage, "Settings", partial(Settings, budget=LITTLE, batch_size=8))
    works = Check(10, "attack works", "pass", "")
    monkeypatch.setattr(checks, "attack_works", lambda *_, **__: works)
    curve = [Point(0, 1.0, "none"), *(Point(share / 255, 0.8 - share / 4, "some") for share in (1.0, 2.0, 3.0))]
    monkeypatch.setattr(stage, "curve_of", lambda *_: curve)
    monkeypatch.setattr(stage, "curve_agrees", lambda *_: works)


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """F by threat, from now on."""
    spent, attack = Counter[str](), stage.autoattack_of

    def heard(model, images, threat, settings):
        report = attack(model, images, threat, settings)
        spent[str(threat)] += sum(a.forwards for a in report.attacks)
        return report

    monkeypatch.setattr(stage, "autoattack_of", heard)
    return spent


@pytest.mark.slow
def test_also(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, bare = run([])
    assert not {"also", "expected_robustness"} & set(plain)
    spent = counted(monkeypatch)
    record, flags = run(ALSO)
    assert spent[str(Threat("linf", "1/255"))] == 0 < spent["l2:0.8"]  # what is known of a threat stays known
    assert {key: record[key] for key in plain} == plain
    assert all((flags[name] == bare[name]).all() for name in bare.dtype.names)
    rows = {row["what"]: row for row in record["also"]}
    assert list(rows) == ["l2:0.8", "linf:16/255", "union", "corruptions"]

    net, test = load_classifier(stage.MERGED).eval(), stratified(read_images(stage.TEST), 8, 0)
    for what in ALSO[:2]:
        alone = autoattack(
            net,
            torch.from_numpy(test.x),
            test.y,
            Threat.parse(what),
            version="fast",
            budget=LITTLE,
            ids=test.ids,
            show=False,
        )
        assert alone.robust.tolist() == flags[what].tolist()
        assert rows[what]["accuracy"] == alone.robust_accuracy
        assert rows[what]["ci95"] == list(alone.ci95)
    union = flags["robust"] & flags["l2:0.8"] & flags["linf:16/255"]
    assert rows["union"]["accuracy"] == union.mean()
    assert rows["union"]["threats"] == ["linf:1/255", "l2:0.8", "linf:16/255"]
    twins = flags["baseline_robust"] & flags["baseline_l2:0.8"] & flags["baseline_linf:16/255"]
    assert rows["union"]["baseline"]["accuracy"] == twins.mean()

    assert 0 < flags["l2:0.8"].sum() < 8  # else the union would tell nothing
    right = under_corruptions(net, test, Settings(show=False, batch_size=8)).numpy()
    assert (flags["corruptions"] == right.sum((1, 2))).all()
    row = rows["corruptions"]
    assert row["accuracy"] == pytest.approx(right.mean())
    assert row["ci95"] == pytest.approx(wilson(right.mean() * 8, 8))
    assert row["strengths"] == "CIFAR-10-C"
    assert np.allclose([kind["by_severity"] for kind in row["kinds"]], right.mean(0))
    assert np.mean([kind["accuracy"] for kind in row["kinds"]]) == pytest.approx(right.mean())

    expected = {"up_to": 2 / 255, "accuracy": (1 + 2 * 0.55 + 0.3) / 4, "baseline": 0.6, "attack": "some"}
    assert record["expected_robustness"] == pytest.approx(expected)
    gates = Gates(also={"l2:0.8": 0.0, "union": 1, "corruptions": 0.01, "l1:5": 0.1})
    refused = [f.what for f in also_findings(record, flags, gates.also) if not f.passed]
    assert refused == ["union", "l1:5"]
