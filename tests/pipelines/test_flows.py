"""The flows on a real Prefect server (sqlite, in a folder of the test), real DVC and real git."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipelines.conftest import git
from tests.pipelines.servers import Server

pytestmark = pytest.mark.slow

SWEEP = {
    "stages": ["report"],
    "first": "prepare",
    "grid": {"train.method": ["plain", "broken"], "seed": [0, 1]},
    "over": "seed",
    "baseline": {"train.method": "plain"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder).start()
    server.environment["HOME"] = str(folder / "home")
    (folder / "home").mkdir()
    yield server
    server.stop()


@pytest.fixture
def toy(template: Path, tmp_path: Path) -> Path:
    import shutil

    project = Path(shutil.copytree(template, tmp_path / "project"))
    (project / "presets" / "sweeps").mkdir(parents=True)
    (project / "presets" / "sweeps" / "toy.yaml").write_text(yaml.safe_dump(SWEEP))
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "a sweep")
    return project


def call(server: Server, project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python -m ...` as a user gives it."""
    env = server.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"}
    return subprocess.run([sys.executable, "-m", *command], cwd=project, env=env, capture_output=True, text=True)


def api(server: Server, path: str, **body) -> list[dict]:
    import urllib.request

    request = urllib.request.Request(
        f"{server.url}/{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def test_sweep_goes_on_past_a_failed_cell_and_resumes_it(server, toy):
    """Four cells, two of them broken: the other two make the table; mended, only the broken ones are done again."""
    home = Path(server.environment["HOME"])
    first = call(server, toy, "pipelines.sweep", "toy", "--at-once", "2")
    assert first.returncode == 1
    assert "2 of 4 cells failed" in first.stderr
    assert "train: method is 'broken'" in first.stdout + first.stderr
    table = toy / "reports" / "sweeps" / "toy"
    assert [(row["n"], row["failed"]) for row in read(table / "table.csv")] == [("2", "0"), ("0", "2")]
    assert (home / "prepared.log").read_text().count("prepared") == 2  # once per seed, not once per cell
    (home / "mended").touch()
    second = call(server, toy, "pipelines.sweep", "toy", "--at-once", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "4 cells, 2 of them to do" in second.stdout + second.stderr
    assert (home / "prepared.log").read_text().count("prepared") == 2
    rows = read(table / "table.csv")
    assert [row["n"] for row in rows] == ["2", "2"]
    assert rows[1]["p_seeds"]
    assert (table / "table.png").stat().st_size > 5000
    assert not list((toy / ".work" / "workspaces").glob("*"))
    assert parent_and_children(toy) == (1, 4)


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def parent_and_children(project: Path) -> tuple[int, int]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    files = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert {"table.csv", "table.md", "table.png"} <= files
    return len(parents), len(runs) - len(parents)
