"""What a run shows at its end, and that a flow stays light: no torch, nothing sent home."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import rebuild
from pipelines.execution import commands
from pipelines.execution.commands import CommandFailed
from pipelines.workspace import dvc_graph as graph
from pipelines.workspace import results
from pipelines.workspace.commits import WorkspaceError
from stages.common.errors import AGAIN, BUSY, INTERRUPTED, MEND
from tests.pipelines.conftest import ROOT

REPORT = {
    "clean_accuracy": 0.9,
    "robust_accuracy": 0.45,
    "attacks": [{"name": "apgd-ce", "robust_accuracy": 0.5}, {"name": "square", "robust_accuracy": 0.45}],
    "baseline": {
        "clean_accuracy": 0.97,
        "robust_accuracy": 0.0,
        "attacks": [{"name": "apgd-ce", "robust_accuracy": 0.0}],
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in {
        "reports/robustness.json": REPORT,
        "reports/timing/evaluate.json": {"seconds": 12.5},
        "models/registered.json": {
            "name": "robust-digits",
            "version": "3",
            "run_id": "abc",
            "experiment_id": "7",
            "tracking_uri": "http://mlflow:5000",
        },
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "reports" / "card.html").write_text("<html>")
    (tmp_path / "dvc.lock").write_text("lock")
    return tmp_path


def test_table_shows_clean_robust_each_attack_and_seconds(folder):
    rows = results.rows(folder, [{"stage": "evaluate", "what": "run", "seconds": 14.0}])
    assert [tuple(row.values()) for row in rows] == [
        ("clean accuracy", "90.00 %", "97.00 %", ""),
        ("robust accuracy", "45.00 %", "0.00 %", ""),
        ("after apgd-ce", "50.00 %", "0.00 %", ""),
        ("after square", "45.00 %", "", ""),
        ("stage evaluate", "run", "", "14 (stage alone: 12.5)"),
    ]


def test_links_to_the_run_and_the_card(folder):
    found = results.links(folder)
    assert found["mlflow"] == "http://mlflow:5000/#/experiments/7/runs/abc"
    assert found["card"] == (folder / "reports" / "card.html").as_uri()
    assert "robust-digits version 3, MLflow run `abc`" in results.summary(folder, "rebuild", [])


def test_a_relative_work_folder_is_the_same_from_a_fresh_worktree(tmp_path, monkeypatch):
    """Handed on as it is, each worktree would keep progress in itself and lose it with itself."""
    monkeypatch.setenv("AUTOLORA_WORK", "progress")
    source = tmp_path / "clone"
    source.mkdir()
    assert rebuild.environment(source, source / "worktree")["AUTOLORA_WORK"] == str(source / "progress")
    monkeypatch.setenv("AUTOLORA_WORK", str(tmp_path / "shared"))
    assert rebuild.work_root(source) == tmp_path / "shared"


def test_a_run_that_ended_before_evaluate_has_no_figures(tmp_path):
    assert results.figures(tmp_path) == []
    assert results.links(tmp_path) == {}


def test_what_outlives_a_workspace(folder, tmp_path):
    results.collect(folder, tmp_path / "kept")
    kept = {str(file.relative_to(tmp_path / "kept")) for file in (tmp_path / "kept").rglob("*") if file.is_file()}
    assert kept >= {"dvc.lock", "models/registered.json", "reports/robustness.json", "reports/timing/evaluate.json"}


def ending(code: int) -> rebuild.StageFailed:
    error = rebuild.StageFailed("finetune: what it said")
    error.code = code
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ending(MEND), False),
        (ending(INTERRUPTED), False),
        (ending(AGAIN), True),
        (CommandFailed("dvc repro: exit status 255\nERROR: failed to run: exited with -9"), True),
    ],
)
def test_what_the_user_has_to_mend_is_not_tried_again(error, again):
    class State:
        def result(self, raise_on_failure: bool) -> Exception:
            return error

    assert rebuild.worth_a_retry(None, None, State()) is again


TELLS = """import json, pathlib, sys
pathlib.Path(".work/endings").mkdir(parents=True, exist_ok=True)
pathlib.Path(".work/endings/prepare.json").write_text(json.dumps({"code": 69, "message": "somebody is at work"}))
sys.exit(69)
"""


def test_how_a_stage_ended_is_read_from_its_file(project):
    """DVC hands on no exit code; the ending of an earlier run does not count."""
    (stage,) = graph.stages(project, ["prepare"])
    (project / "prepare.py").write_text(TELLS)
    with pytest.raises(rebuild.StageFailed, match=r"^prepare: somebody is at work$") as caught:
        rebuild.run_stage(stage, project, commands.environment(), print)
    assert caught.value.code == BUSY
    (project / "prepare.py").write_text("import sys; sys.exit(1)")
    with pytest.raises(CommandFailed, match="exit status 255"):
        rebuild.run_stage(stage, project, commands.environment(), print)


def test_a_cell_waits_for_the_one_that_makes_the_same(monkeypatch):
    """As often as it takes, within the stage's time limit: retries are few, and for something else."""
    monkeypatch.setattr(rebuild, "PAUSE", 0.0)
    answers, said = iter([ending(BUSY)] * 5 + ["made"]), []

    def work() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert rebuild.when_free(work, 60, said.append) == "made"
    assert len(said) == 5
    answers = iter([ending(BUSY)])
    with pytest.raises(rebuild.StageFailed):
        rebuild.when_free(work, -1, said.append)
    answers = iter([ending(MEND), "made"])
    with pytest.raises(rebuild.StageFailed, match="what it said"):
        rebuild.when_free(work, 60, said.append)


MODULES = [f"pipelines.{file.stem}" for file in sorted((ROOT / "pipelines").glob("*.py")) if file.stem != "__init__"]


@pytest.mark.slow
def test_flows_import_no_torch():
    """Not through stages/ or autolora/ either: a flow runs where there is no GPU and starts in seconds."""
    code = f"import sys, {', '.join(MODULES)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_nothing_is_sent_home():
    """Neither by a server started here, nor by the clients, whatever server they talk to."""
    code = (
        "import pipelines.rebuild; from prefect.settings import get_current_settings as s; "
        "from prefect._internal.analytics import is_telemetry_enabled as t; "
        "from mlflow.telemetry.utils import is_telemetry_disabled as m; "
        "print(s().server.analytics_enabled, t(), not m())"
    )
    said = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "CI", "PYTEST_CURRENT_TEST")
    env = {k: v for k, v in os.environ.items() if k not in said}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "trian"], "no stage 'trian' in dvc.yaml: the stages are prepare, train, report"),
        (["--revision", "v9"], "revision 'v9' does not exist"),
        (["--override", "seed"], "expected KEY=VALUE"),
        (["--uncommitted", "--override", "seed=1"], "not committed: train.py"),
    ],
)
def test_refusals_come_before_a_server_is_started(project, monkeypatch, capsys, arguments, message):
    """One line, no traceback; Prefect is forbidden to start its server, so that a late refusal fails the test."""
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["rebuild", *arguments])
    (project / "train.py").write_text("# changed")
    with pytest.raises(SystemExit, match=message):
        rebuild.main()


@pytest.fixture
def another_s() -> Iterator[Path]:
    """A folder of root, seen by somebody else; for a user who is not root, one that is closed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755 if os.geteuid() == 0 else 0o555)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(was)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_of_another_user_is_refused_before_anything_is_built(another_s):
    """Sweeps and pods share one: it says which folder, and whose it is."""
    says = (
        f"{another_s} belongs to uid {another_s.stat().st_uid}, and this run of uid {os.geteuid()} cannot write there"
    )
    with pytest.raises(WorkspaceError, match=re.escape(says)):
        results.require_writable(another_s / "sweeps/digits/a cell")
    with pytest.raises(WorkspaceError, match=re.escape(says)):
        results.require_writable(another_s)


def test_a_folder_of_one_s_own_is_made(tmp_path):
    results.require_writable(tmp_path / "sweeps/digits/a cell")
    assert list((tmp_path / "sweeps/digits/a cell").iterdir()) == []
