"""Where runs are recorded (MLFLOW_TRACKING_URI, else sqlite in this folder), and how figures get there."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import psutil

from autolora.common.errors import first_line
from stages.common.clone import clone_of, seen_from_clone
from stages.common.errors import StageError, TryAgain
from stages.common.scrub import scrubbed

SQLITE = "sqlite:///"
DEFAULT_URI = f"{SQLITE}mlflow.db"
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Set before MLflow is imported, and only where the user has not said otherwise.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}


class ServerAway(TryAgain):
    """The tracking server does not answer."""


def tracking_uri() -> str:
    """A database file that is named without its folder lies in the clone, not in a temporary copy of it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    return f"{SQLITE}{seen_from_clone(uri.removeprefix(SQLITE))}" if uri.startswith(SQLITE) else uri


def artifact_location() -> str | None:
    """Without a server MLflow would put files where the experiment was created: into a copy that goes away, maybe."""
    if tracking_uri().startswith(SQLITE) and clone_of() != Path.cwd().resolve():
        return str(clone_of() / "mlruns" / experiment())
    return None


def experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "autolora"


def mlflow_module() -> ModuleType:
    """MLflow without telemetry, banners and migration logs, pointed at the tracking server."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    # MLflow configures its loggers when it is imported; the first use of sqlite logs some forty migrations.
    # urllib3 would tell of every retry to a server that is away.
    for name in ("mlflow", "alembic", "mlflow.store.db.utils", "mlflow.system_metrics", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"mlflow\..*")
    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_registry_uri(tracking_uri())
    return mlflow


def connect() -> ModuleType:
    """MLflow after the server has answered; ServerAway, with the address and what to set, when it has not."""
    reason = _unreachable(tracking_uri())
    if reason is None:
        mlflow = mlflow_module()
        try:
            make_database(mlflow, tracking_uri())
            mlflow.MlflowClient().search_experiments(max_results=1)
            return mlflow
        except Exception as error:  # whatever the driver of this address raises
            reason = f"{type(error).__name__}: {first_line(error)}"
    raise away(reason)


def make_database(mlflow: ModuleType, uri: str) -> None:
    """All of it under another name first: what a kill leaves of MLflow's migrations can be opened by nobody again."""
    path = database_file(uri)
    if not uri.startswith(SQLITE) or path.exists() or path.name in ("", ":memory:"):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_what_a_kill_left(path)
    part = part_of(path, os.getpid())
    try:
        mlflow.MlflowClient(f"{SQLITE}{part}").search_experiments(max_results=1)
        _put(part, path)
    finally:
        part.unlink(missing_ok=True)


def database_file(uri: str) -> Path:
    """Of sqlite:///FILE?timeout=60 the file."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0])


def _put(part: Path, path: Path) -> None:
    """Never over what another process has put there meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            os.replace(part, path)


def part_of(path: Path, process: int | str) -> Path:
    return path.with_name(f".{path.name}.{process}.part")


def remove_what_a_kill_left(path: Path) -> None:
    """The part, and the journal that SQLite keeps beside it: found by a new part of the same name, it would be played
    back into that.
    """
    for left in path.parent.glob(part_of(path, "*").name + "*"):
        if not psutil.pid_exists(int(left.name.removeprefix(f".{path.name}.").partition(".")[0])):
            left.unlink(missing_ok=True)


def away(reason: str) -> ServerAway:
    return ServerAway(
        f"the MLflow server {shown_uri()} does not answer ({scrubbed(reason)}). Start it, or set "
        f"MLFLOW_TRACKING_URI (unset: {DEFAULT_URI} in this folder). Nothing is lost: `dvc repro` finishes later."
    )


@contextmanager
def answering() -> Iterator[None]:
    """A server that goes away in the middle of the block is a ServerAway like one that was never there; what it
    refuses reads well."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        if reason := _unreachable(tracking_uri()):
            raise away(reason) from error
        if isinstance(error, mlflow_module().MlflowException):
            said = scrubbed(first_line(error))
            raise StageError(f"the MLflow server {shown_uri()} refuses: {said}") from error
        raise


def _unreachable(uri: str, seconds: float = 5.0) -> str | None:
    """Why no TCP connection comes about (quickly: MLflow itself would retry for minutes), or None."""
    try:
        parts = urlsplit(uri)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
        if parts.hostname is None or port is None:  # a file, or an address that its driver must judge
            return None
        socket.create_connection((parts.hostname, port), timeout=seconds).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def shown_uri() -> str:
    """The server's address as it may be shown and kept."""
    return scrubbed(tracking_uri())


def experiment_id(mlflow: ModuleType) -> str:
    """The experiment of all runs, created at first use (by whoever comes first)."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment())
    if found is None:
        with suppress(mlflow.MlflowException):  # another process has just created it
            return client.create_experiment(experiment(), artifact_location())
        found = client.get_experiment_by_name(experiment())
    return found.experiment_id


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"threat": {"eps": 1}} -> {"threat.eps": 1}"""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """What MLflow can keep as metrics: finite numbers, without the epoch, which is their step."""
    found = {}
    for name, value in record.items():
        with suppress(TypeError, ValueError):
            if name != "epoch" and math.isfinite(float(value)):
                found[name] = float(value)
    return found


def log_epochs(mlflow: ModuleType, run_id: str, records: Sequence[Mapping[str, Any]]) -> None:
    """One metric value per number and epoch, in as few requests as MLflow allows."""
    now = int(time.time() * 1000)
    metrics = [
        mlflow.entities.Metric(name, value, now, int(record["epoch"]))
        for record in records
        for name, value in numbers(record).items()
    ]
    for start in range(0, len(metrics), 1000):
        mlflow.MlflowClient().log_batch(run_id, metrics=metrics[start : start + 1000])


def log_params(mlflow: ModuleType, run_id: str, params: Mapping[str, Any]) -> None:
    """Parameters that the run does not have yet: MLflow lets nobody change one."""
    client = mlflow.MlflowClient()
    known = client.get_run(run_id).data.params
    new = [mlflow.entities.Param(key, scrubbed(str(value))) for key, value in flat(params).items() if key not in known]
    for start in range(0, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])
