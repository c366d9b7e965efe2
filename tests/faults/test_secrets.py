"""Secrets are planted wherever an address or a setting may hold one, and looked for in all that leaves a stage."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus

import pytest
import yaml

from stages.common.errors import AGAIN, MEND
from stages.common.scrub import scrubbed
from tests.registry.synthetic import make_run

SECRET = "pl4nted-S3cret"
ODBC = f"DRIVER={{ODBC Driver 18}};SERVER=127.0.0.1,9;UID=me;PWD={SECRET};"
ADDRESSES = {
    "password": f"http://me:{SECRET}@127.0.0.1:9",
    "token alone": f"http://{SECRET}-and-longer@127.0.0.1:9",
    "an unescaped @ and /": f"http://me:p@ss/{SECRET}@127.0.0.1:9",
    "a query": f"postgresql+psycopg2://127.0.0.1:9/db?user=me&password={SECRET}",
    "a driver's own error": f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:9/db",
    "an address that does not parse": f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:nine/db",
    "odbc": f"mssql+pyodbc:///?odbc_connect={quote_plus(ODBC)}",
    "a scheme that nobody knows": f"nowhere://me:{SECRET}@host/{SECRET}",
}
WEIGHTS = {
    "password": f"https://me:{SECRET}@example.org/robust.pt",
    "token": f"https://{SECRET}@example.org/robust.pt",
    "query": f"https://example.org/robust.pt?token={SECRET}",
}


@pytest.fixture
def register(root: Path, python: str) -> Callable[..., subprocess.CompletedProcess]:
    """A function that runs the stage in a folder."""

    def run(folder: Path, **environment: str) -> subprocess.CompletedProcess:
        env = os.environ | {"PYTHONPATH": str(root), "HOME": str(folder), **environment}
        command = [python, "-m", "stages.register"]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)

    return run


def leaks(folder: Path, done: subprocess.CompletedProcess, *but: str) -> list[str]:
    """Where the secret stands, in all that was printed and in every file."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in but]
    found = [str(p.relative_to(folder)) for p in files if SECRET.encode() in p.read_bytes()]
    return found + [name for name in ("stdout", "stderr") if SECRET in getattr(done, name)]


@pytest.mark.slow
@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_a_tracking_address(register, tmp_path, address):
    folder = make_run(tmp_path / "run")
    done = register(folder, MLFLOW_TRACKING_URI=address)
    assert done.returncode in (AGAIN, MEND), done.stderr
    assert "the MLflow server" in done.stderr
    assert leaks(folder, done) == []
    assert (folder / "reports/card.html").is_file()


@pytest.mark.slow
def test_a_traceback(register, tmp_path):
    folder = make_run(tmp_path / "run")
    done = register(folder, MLFLOW_TRACKING_URI=ADDRESSES["odbc"], AUTOLORA_TRACEBACK="1")
    assert "Traceback" in done.stderr
    assert leaks(folder, done) == []


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_with_credentials_are_refused_before_anything_is_written(register, tmp_path, weights):
    folder = make_run(tmp_path / "run")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["backbone"]["weights"] = weights
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = register(folder)
    assert done.returncode == MEND
    assert "backbone.weights" in done.stderr
    assert "leave it out" in done.stderr
    assert leaks(folder, done, "params.yaml") == []


@pytest.mark.slow
def test_a_run_that_succeeds(register, tmp_path, migrated):
    """The address of a real server; what the server itself keeps is looked through, too."""
    from tests.registry.test_real_servers import free_port, mlflow_server

    folder, port = make_run(tmp_path / "run"), free_port()
    shutil.copy(migrated, tmp_path / "server.db")
    with mlflow_server(f"sqlite:///{tmp_path}/server.db", tmp_path / "server", port):
        done = register(folder, MLFLOW_TRACKING_URI=f"http://me:{SECRET}@127.0.0.1:{port}")
        assert done.returncode == 0, done.stderr
    assert (folder / "models/registered.json").is_file()
    assert leaks(tmp_path, done) == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://host:5000/#/experiments/1", "http://host:5000/#/experiments/1"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("models:/digits@champion", "models:/digits@champion"),
        ("https://me:x@host/a (refused)", "https://***@host/a (refused)"),
        ("PWD={a;b};SERVER=x", "PWD=***;SERVER=x"),
        ("host=x password='a b' dbname=y", "host=x password=*** dbname=y"),
        ("eps=8/255, seed=0: 60 of 200", "eps=8/255, seed=0: 60 of 200"),
        ("https://host/c/w.pth?sv=1&sig=a%2Bb%3D&se=2", "https://host/c/w.pth?sv=1&sig=***&se=2"),
        ("design=1, sigma=0.25, my_sig=3", "design=1, sigma=0.25, my_sig=3"),
    ],
)
def test_what_is_taken_and_what_is_left(text, left):
    assert scrubbed(text) == left


def test_a_secret_of_the_environment_is_hidden_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET}@host")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    assert scrubbed(f"login of me failed with {SECRET}, and with hf_0123456789") == (
        "login of me failed with ***, and with ***"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow:mlflow@host")
    assert scrubbed("the mlflow server https://mlflow:mlflow@host") == "the mlflow server https://***@host"
