"""Real MLflow servers, as processes of their own: on sqlite, and on PostgreSQL where one is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autolora.common.files import file_sha256, read_json
from pipelines.promote import main as promote
from pipelines.registry.versions import alias_version
from stages.tracking.client import ENVIRONMENT, connect
from stages.tracking.live_run import LIVE_RECORD, live
from tests.registry.synthetic import ROOT, make_run

pytestmark = pytest.mark.slow
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # processes of the server that nothing here asks for


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def mlflow_server(store: str, folder: Path, port: int) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT | QUIET, start_new_session=True
        )
    try:
        wait_for_port(port, process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
        process.wait(120)


def wait_for_port(port: int, process: subprocess.Popen, log: Path) -> None:
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"the server does not start: {log.read_text()[-2000:]}")


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of our own. It does not run as root, and pytest's folders are closed to everybody else."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port, data, prefix = free_port(), Path(folder) / "data", []
        data.mkdir()
        if os.geteuid() == 0:
            Path(folder).chmod(0o755)
            shutil.chown(data, "postgres")
            prefix = ["runuser", "-u", "postgres", "--"]
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [*prefix, tool("pg_ctl"), "-D", data]
        quietly([*prefix, tool("initdb"), "-D", data, "-U", "mlflow", "-A", "trust", "--no-sync"])
        quietly([*control, "-o", options, "-l", data / "log", "-w", "-t", "300", "start"])
        try:
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            quietly([*control, "-m", "immediate", "stop"])


def quietly(command: list) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")


def tool(name: str) -> str | None:
    known = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(known[-1]) if known else None)


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request, tmp_path, monkeypatch, migrated):
    folder = tmp_path / "server"
    if request.param == "sqlite":
        shutil.copy(migrated, tmp_path / "server.db")  # MLflow's forty migrations have run once
        with mlflow_server(f"sqlite:///{tmp_path}/server.db", folder, free_port()) as uri:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            yield uri
        return
    if tool("initdb") is None or tool("pg_ctl") is None:
        pytest.skip("needs PostgreSQL (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="needs the driver psycopg2")
    with postgresql() as store, mlflow_server(store, folder, free_port()) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


def register_in(folder: Path, python: str) -> subprocess.Popen:
    """As on a machine of its own: another process, another work folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AUTOLORA_WORK": str(folder / ".work"), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "stages.register"]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_two_machines_register_at_once_and_the_better_one_is_promoted(server, tmp_path, monkeypatch, python):
    for name in ("a", "same"):
        make_run(tmp_path / name)
    both = [register_in(tmp_path / name, python) for name in ("a", "same")]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    receipts = [read_json(tmp_path / name / "models/registered.json") for name in ("a", "same")]
    assert receipts[0] == receipts[1]

    mlflow = connect()
    client = mlflow.MlflowClient()
    (version,) = client.search_model_versions("name = 'synthetic'")  # one is there, whoever came first
    assert int(version.version) == receipts[0]["version"]
    path = mlflow.artifacts.download_artifacts(
        f"models:/synthetic/{version.version}/model.onnx", dst_path=str(tmp_path)
    )
    assert file_sha256(path) == receipts[0]["onnx_sha256"]

    from stages.register import register

    monkeypatch.chdir(make_run(tmp_path / "better", robust=0.72, seed=1))
    register()
    better = read_json("models/registered.json")["version"]
    assert promote(["synthetic", str(version.version)]) == 0
    assert promote(["synthetic", str(better)]) == 0
    assert promote(["synthetic", str(version.version)]) == 1
    assert alias_version(client, "synthetic", "champion") == better


def test_a_server_that_goes_away_and_comes_back(tmp_path, monkeypatch, migrated):
    """It dies during training, is missing at `register`, and is back at the next `dvc repro`: nothing is lost."""
    from stages.common.runner import StageError
    from stages.register import register
    from tests.stages.tracking.test_live_run import rows_of

    run, port, store = make_run(tmp_path / "run"), free_port(), f"sqlite:///{tmp_path}/server.db"
    rows, work = rows_of(run), tmp_path / "work/finetune/key"
    shutil.copy(migrated, tmp_path / "server.db")
    work.mkdir(parents=True)
    monkeypatch.chdir(run)
    monkeypatch.setenv("AUTOLORA_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    server = mlflow_server(store, tmp_path / "server", port)
    server.__enter__()
    with live(work, {}, 60) as on_epoch:
        on_epoch(rows[0])
        while not (work / LIVE_RECORD).exists():
            time.sleep(0.1)
        server.__exit__(None, None, None)
        for row in rows[1:]:
            on_epoch(row)
    with pytest.raises(StageError, match="does not answer"):
        register()
    with mlflow_server(store, tmp_path / "server", port):
        register()
        receipt = read_json("models/registered.json")
        assert receipt["run_id"] == read_json(work / LIVE_RECORD)["run_id"]
        history = connect().MlflowClient().get_metric_history(receipt["run_id"], "val_robust")
        assert sorted(m.step for m in history) == list(range(1, 61))
