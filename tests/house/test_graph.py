"""dvc.yaml says the truth: a stage depends on exactly the code that it reaches, and all seven stages are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stages.evaluation.provenance_checks import nothing_chosen
from tests.house.imports import ROOT, closure

# What these hand on are values that DVC tracks itself (params, files): a change in them is no reason to train again.
PLUMBING = frozenset(
    {
        Path("stages/common/backbone.py"),
        Path("stages/common/clone.py"),
        Path("autolora/common/command_line.py"),
        Path("autolora/common/progress.py"),
        Path("stages/common/command_line.py"),
        Path("stages/common/endings.py"),
        Path("stages/estimate/announce.py"),
        Path("stages/estimate/costs.py"),
        Path("stages/common/contradictions.py"),
        Path("stages/common/errors.py"),
        Path("stages/common/params.py"),
        Path("stages/common/recipes.py"),
        Path("stages/common/views.py"),
        Path("stages/common/runner.py"),
        Path("stages/common/scrub.py"),
        Path("stages/common/weights.py"),
        Path("stages/common/yaml_text.py"),
        Path("stages/tracking/client.py"),
        Path("stages/tracking/live_run.py"),
    }
)
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_the_seven_stages():
    assert list(STAGES) == ["prepare", "validate", "finetune", "merge", "evaluate", "export", "register"]
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert stage["desc"]


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_import_closure(name):
    declared = {Path(d) for d in STAGES[name]["deps"] if d.endswith(".py")}
    own = Path(f"stages/{name}.py")
    reached = closure(own, without=PLUMBING - {own})
    assert declared == reached, "in dvc.yaml write:\n" + "\n".join(f"      - {p}" for p in sorted(reached))


def test_nothing_before_evaluate_reads_the_test_part():
    assert nothing_chosen(STAGES).verdict == "pass"
    for name in ("validate", "finetune", "merge"):
        for planted in ("data/prepared", "data/prepared/test", "data/prepared/test/labels.npy"):
            reading = STAGES[name] | {"deps": [*STAGES[name]["deps"], planted]}
            assert nothing_chosen(STAGES | {name: reading}).verdict == "fail"


def test_later_params_do_not_train_again():
    """merge, evaluate, export and register are no reason to train; threat, backbone and method are."""
    declared = STAGES["finetune"]["params"]
    assert not [key for key in declared if key.split(".")[0] in ("merge", "evaluate", "export", "register")]
    assert {"threat", "backbone", "finetune", "seed"} <= set(declared)
