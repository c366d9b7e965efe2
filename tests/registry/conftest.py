"""A made-up run, and a registry of its own for every test that asks for one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pytest

from autolora.common.files import read_json
from pipelines.registry import decision_log as history
from tests.registry.deployments import Serving
from tests.registry.synthetic import make_run


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; its migrations take seconds, so they run once."""
    folder = tmp_path_factory.mktemp("migrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        from stages.tracking.client import connect

        connect()
    return folder / "mlflow.db"


@pytest.fixture
def store(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry on sqlite; files of runs and models lie under mlruns beside it."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    return folder


@pytest.fixture
def registered(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Make a run and register it: registered("a", robust=0.7) -> the receipt; the run stays in tmp_path/a."""
    from stages.register import register

    def run(folder: str, **options: Any) -> dict[str, Any]:
        path = tmp_path / folder
        if not path.exists():
            make_run(path, **options)
        monkeypatch.chdir(path)
        register()
        return read_json("models/registered.json")

    # The artifact root of a database is taken from the working directory of its first user.
    from stages.tracking.client import connect, experiment_id

    experiment_id(connect())
    return run


BETTER, WORSE = {"robust": 0.72, "seed": 1}, {"robust": 0.5, "seed": 2}


@pytest.fixture(scope="session")
def snapshot(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with three versions, registered once: 1, a better one and a worse one; their runs lie in 1, 2, 3."""
    folder = tmp_path_factory.mktemp("snapshot")
    shutil.copy(migrated, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        from stages.register import register
        from stages.tracking.client import connect, experiment_id

        experiment_id(connect())
        for name, options in {"1": {}, "2": BETTER, "3": WORSE}.items():
            patch.chdir(make_run(folder / name, **options))
            register()
    shutil.copytree(folder / "mlruns", folder / "as it was")
    return folder


@pytest.fixture
def registry(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three versions as they were, in a database of this test's own; the test stands in the folder of run 1."""
    shutil.rmtree(snapshot / "mlruns")  # the database knows this path
    shutil.copytree(snapshot / "as it was", snapshot / "mlruns")
    shutil.copy(snapshot / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(snapshot / "1")
    return snapshot


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Any:
    """Of the registry that the test uses: one of its own, or the three versions."""
    request.getfixturevalue("registry" if "registry" in request.fixturenames else "store")
    from stages.tracking.client import connect

    return connect().MlflowClient()


@pytest.fixture
def service(tmp_path):
    return tmp_path / "service"


@pytest.fixture
def champion(client):
    """Moves the alias as promotion does: a decision in the log, then the move."""

    def promoted(number):
        version = client.get_model_version("synthetic", str(number))
        entry = {"model": "synthetic", "alias": "champion", "version": number, "previous": None, "decision": "forced"}
        history.append(client, entry | {"why": "test"} | history.contents(version))
        client.set_registered_model_alias("synthetic", "champion", str(number))

    return promoted


@pytest.fixture
def url(service, monkeypatch):
    monkeypatch.setattr(Serving, "folder", service)
    server = HTTPServer(("127.0.0.1", 0), Serving)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
