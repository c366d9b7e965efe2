"""An experiment in a copy that DVC deletes: what it recorded, and what it had begun, is there afterwards.

With `--temp`, and with `--queue` whose worker DVC starts; then one of them is applied, and registered here.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DVC_YAML = """\
stages:
  register:
    cmd: python register.py
    deps: [register.py]
    params: [seed]
    outs: [done.txt]
"""
REGISTER = """\
from pathlib import Path
from stages.common.runner import work_dir
from stages.tracking.client import connect, experiment_id
mlflow = connect()
client = mlflow.MlflowClient()
run = client.create_run(experiment_id(mlflow))
client.log_text(run.info.run_id, "kept", "kept.txt")
(work_dir("register", seed=1) / run.info.run_id).write_text(str(Path.cwd()))
Path("done.txt").write_text("done")
"""


def command(folder: Path, home: Path, *words: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AUTOLORA_", "MLFLOW_", "GIT_"))}
    env |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_what_an_experiment_in_a_copy_records_outlives_the_copy(tmp_path):
    home, project = tmp_path / "home", tmp_path / "project"
    for folder in (home, project):
        folder.mkdir()
    files = {"dvc.yaml": DVC_YAML, "register.py": REGISTER, "params.yaml": "seed: 0\n"}
    files[".gitignore"] = "/.work\n/mlflow.db\n/mlruns\n/done.txt\n__pycache__\n"
    for name, text in files.items():
        (project / name).write_text(text)
    command(project, home, "git", "init", "--quiet")
    command(project, home, "git", "config", "user.name", "me")
    command(project, home, "git", "config", "user.email", "me@example.org")
    command(project, home, "dvc", "init", "--quiet")
    command(project, home, "git", "add", ".")
    command(project, home, "git", "commit", "--quiet", "-m", "a project")
    command(project, home, "dvc", "exp", "run", "--temp", "-S", "seed=1")
    assert not (project / "done.txt").exists()  # nothing here has changed
    command(project, home, "dvc", "exp", "run", "--queue", "-S", "seed=2", "--name", "queued")
    command(project, home, "dvc", "exp", "run", "--run-all")
    with closing(sqlite3.connect(project / "mlflow.db")) as database:
        folders = [Path(folder) for (folder,) in database.execute("select artifact_uri from runs")]
    assert [(folder / "kept.txt").read_text() for folder in folders] == ["kept", "kept"]
    assert all(folder.is_relative_to(project / "mlruns") for folder in folders)
    progress = list((project / ".work/register").glob("*/*"))
    assert len(progress) == 2
    for copy in [Path(file.read_text()) for file in progress]:
        assert copy.is_relative_to(project / ".dvc/tmp/exps")
        assert not copy.exists()
    command(project, home, "dvc", "exp", "apply", "queued")
    assert (project / "params.yaml").read_text() == "seed: 2\n"
    assert (project / "done.txt").read_text() == "done"
