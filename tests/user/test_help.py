"""`--help` of every module that is run by hand says what it reads, writes and may be told, and runs nothing."""

from __future__ import annotations

import pytest

from tests.house.imports import AROUND, FLOORS, ROOT, sources

QUICK = {"stages.prepare", "stages.card", "benchmarks.cluster_estimate"}  # the others import torch or Prefect
# They import nothing of ours (one is copied to where the model is asked, one is started by its path): plain argparse.
ALONE = {"deploy.client", "pipelines.execution.process_guard"}


def run_by_hand() -> list[str]:
    found = set()
    for file in (f for floor in (*FLOORS, *AROUND) for f in sources(floor)):
        if file.name == "__main__.py":
            found.add(".".join(file.parent.parts))
        elif '\nif __name__ == "__main__":' in (ROOT / file).read_text(encoding="utf-8"):
            found.add(".".join(file.with_suffix("").parts))
    return sorted(found)


MODULES = [pytest.param(m, marks=[] if m in QUICK else pytest.mark.slow) for m in run_by_hand()]


def test_all_are_there():
    stages = {
        f"stages.{name}" for name in ("prepare", "validate", "finetune", "merge", "evaluate", "export", "register")
    }
    assert stages | {"stages.card", "autolora.export", "pipelines.promote", "tools.pretrain"} <= set(run_by_hand())


@pytest.mark.parametrize("module", MODULES)
def test_help_says_what_it_reads_and_writes_and_runs_nothing(untouched, module):
    told = untouched.run("python", "-m", module, "--help")
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    assert told.stdout.startswith("usage: ")
    if module not in ALONE:
        assert {"reads", "writes"} <= {line.partition(" ")[0] for line in told.stdout.splitlines()}
    assert untouched.changed() == ""


@pytest.mark.parametrize("module", MODULES)
def test_an_unknown_argument_is_refused_with_the_nearest_known_one(untouched, module):
    refused = untouched.run("python", "-m", module, "--hepl")
    assert refused.returncode == 2
    if module not in ALONE:
        assert refused.stderr.startswith(f"python -m {module}: ")
        assert "there is no argument --hepl: did you mean --help?" in refused.stderr
    assert untouched.changed() == ""


def test_the_nearest(untouched):
    refused = untouched.run("python", "-m", "benchmarks.cluster_estimate", "--gpu", "64")
    assert "there is no argument --gpu: did you mean --gpus?" in refused.stderr
    refused = untouched.run("python", "-m", "stages.prepare", "data/raw")
    assert "python -m stages.prepare: there is no argument data/raw: it takes --help, -h" in refused.stderr
