"""A made-up run, and a registry of its own for every test that asks for one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autolora.files import read_json
from tests.registry.synthetic import make_run


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; its migrations take seconds, so they run once."""
    folder = tmp_path_factory.mktemp("migrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        from stages.tracking import connect

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
    from stages.tracking import connect, experiment_id

    experiment_id(connect())
    return run


@pytest.fixture
def client(store: Path) -> Any:
    from stages.tracking import connect

    return connect().MlflowClient()
