"""Where runs are recorded (MLFLOW_TRACKING_URI, else sqlite in this folder), and the live run while training.

    with live(work, params.as_dict(), epochs=60) as on_epoch:     # in the finetune stage
        fit(..., on_epoch=on_epoch)                               # one record per epoch: {"epoch": 1, "lr": 0.01, ...}

The live run costs training nothing: records go to a queue, and a thread imports MLflow, waits for servers and gives up.
What a server missed is written by `register` from reports/training.csv. Files are the truth, MLflow mirrors them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autolora.files import read_json, write_json
from stages.work import StageError

DEFAULT_URI = "sqlite:///mlflow.db"
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
LIVE_RECORD, LIVE_EPOCHS, LIVE_STAGE = "live.json", "live.jsonl", "finetune"
RETRY_SECONDS, GOODBYE_SECONDS = 30.0, 5.0


class ServerAway(StageError):
    """The tracking server does not answer."""


def tracking_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "autolora"


def mlflow_module() -> Any:
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


def connect() -> Any:
    """MLflow after the server has answered; ServerAway, with the address and what to set, when it has not."""
    reason = _unreachable(tracking_uri())
    if reason is None:
        mlflow = mlflow_module()
        try:
            mlflow.MlflowClient().search_experiments(max_results=1)
            return mlflow
        except Exception as error:  # whatever the driver of this address raises
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    raise away(reason)


def away(reason: str) -> ServerAway:
    return ServerAway(
        f"the MLflow server {without_password(tracking_uri())} does not answer ({reason}). Start it, or set "
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
            said = str(error).partition("\n")[0]
            raise StageError(f"the MLflow server {without_password(tracking_uri())} refuses: {said}") from error
        raise


def _unreachable(uri: str, seconds: float = 5.0) -> str | None:
    """Why no TCP connection comes about (quickly: MLflow itself would retry for minutes), or None."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return None
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def without_password(uri: str) -> str:
    """The address as it may be shown and kept."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}").geturl()


def experiment_id(mlflow: Any) -> str:
    """The experiment of all runs, created at first use (by whoever comes first)."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment())
    if found is None:
        with suppress(mlflow.MlflowException):  # another process has just created it
            return client.create_experiment(experiment())
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


def log_epochs(mlflow: Any, run_id: str, records: Sequence[Mapping[str, Any]]) -> None:
    """One metric value per number and epoch, in as few requests as MLflow allows."""
    now = int(time.time() * 1000)
    metrics = [
        mlflow.entities.Metric(name, value, now, int(record["epoch"]))
        for record in records
        for name, value in numbers(record).items()
    ]
    for start in range(0, len(metrics), 1000):
        mlflow.MlflowClient().log_batch(run_id, metrics=metrics[start : start + 1000])


def log_params(mlflow: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """Parameters that the run does not have yet: MLflow lets nobody change one."""
    client = mlflow.MlflowClient()
    known = client.get_run(run_id).data.params
    new = [mlflow.entities.Param(key, str(value)) for key, value in flat(params).items() if key not in known]
    for start in range(0, len(new), 100):
        client.log_batch(run_id, params=new[start : start + 100])


@contextmanager
def live(folder: Path, params: Mapping[str, Any], epochs: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A callback for each epoch's record; `folder` is the stage's work folder, where `register` finds the run again."""
    if int(os.environ.get("RANK", 0)) > 0:
        yield lambda record: None
        return
    run = LiveRun(folder, params, epochs)
    try:
        yield run.on_epoch
    except BaseException:
        run.close("FAILED")
        raise
    run.close("FINISHED")


class LiveRun:
    """The queue between training and a thread that talks to the server whenever there is one."""

    def __init__(self, folder: Path, params: Mapping[str, Any], epochs: int) -> None:
        self.folder, self.params, self.epochs = folder, params, epochs
        self.started, self.first_epoch = time.time(), 0
        self.records: queue.SimpleQueue[dict[str, Any] | str] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="live run", daemon=True)
        self.thread.start()

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        record = dict(record)
        self.first_epoch = self.first_epoch or int(record["epoch"])
        with suppress(OSError, TypeError), open(self.folder / LIVE_EPOCHS, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.records.put(record | {"eta_minutes": self._eta_minutes(int(record["epoch"]))})

    def _eta_minutes(self, epoch: int) -> float:
        """At most: training may stop before the last epoch."""
        done = epoch - self.first_epoch + 1
        return round((time.time() - self.started) / done * (self.epochs - epoch) / 60, 2)

    def close(self, status: str) -> None:
        """Wait a moment for the last record; for a database file to the end, since half a migration is worse."""
        self.records.put(status)
        self.thread.join(GOODBYE_SECONDS if tracking_uri().startswith("http") else None)

    def _work(self) -> None:
        self.waiting: list[dict[str, Any]] = []
        self.mlflow: Any = None
        self.monitor: Any = None
        self.run_id, self.next_try = "", 0.0
        self._send()
        while not isinstance(item := self.records.get(), str):
            self.waiting.append(item)
            self._send()
        self._finish(item)

    def _send(self) -> None:
        """A server that is away costs nothing: it is asked again later, and `register` writes what it missed."""
        if time.time() < self.next_try:
            return
        try:
            self.mlflow = self.mlflow or connect()
            self.run_id = self.run_id or live_run_id(self.mlflow, self.folder, self.params)
            self.monitor = self.monitor or _system_metrics(self.run_id)
            log_epochs(self.mlflow, self.run_id, self.waiting)
            self.waiting, self.next_try = [], 0.0
        except Exception:
            self.next_try = time.time() + RETRY_SECONDS

    def _finish(self, status: str) -> None:
        with suppress(Exception):
            if self.run_id:
                self.monitor.finish()
                self._send()
                self.mlflow.MlflowClient().set_terminated(self.run_id, status)


def live_run_id(mlflow: Any, folder: Path, params: Mapping[str, Any]) -> str:
    """The run of this work: the one begun before a crash, where the server still has it, else a new one."""
    client = mlflow.MlflowClient()
    with suppress(FileNotFoundError, KeyError, ValueError, mlflow.MlflowException):
        known = read_json(folder / LIVE_RECORD)
        if known["tracking_uri"] == without_password(tracking_uri()):
            client.update_run(known["run_id"], status="RUNNING")
            return known["run_id"]
    run = client.create_run(experiment_id(mlflow), run_name=f"finetune {folder.name[:8]}", tags={"stage": LIVE_STAGE})
    write_json(folder / LIVE_RECORD, {"run_id": run.info.run_id, "tracking_uri": without_password(tracking_uri())})
    log_params(mlflow, run.info.run_id, params)
    return run.info.run_id


def _system_metrics(run_id: str) -> Any:
    """Processor, memory, disk and network every ten seconds; accelerators too, where nvidia-ml-py is installed."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, resume_logging=True)
    monitor.start()
    return monitor


def find_live_run(rows: Sequence[Mapping[str, Any]], work: Path) -> str | None:
    """The run of the training that wrote these rows of reports/training.csv, if this machine tracked it live here."""
    for path in sorted(work.glob(f"*/{LIVE_RECORD}"), key=lambda p: p.stat().st_mtime, reverse=True):
        with suppress(OSError, KeyError, ValueError):
            known = read_json(path)
            here = known["tracking_uri"] == without_password(tracking_uri())
            if here and _same_training(rows, path.with_name(LIVE_EPOCHS)):
                return known["run_id"]
    return None


def _same_training(rows: Sequence[Mapping[str, Any]], epochs: Path) -> bool:
    """Every row's numbers are those of the record of its epoch (the last one, where a resumed run wrote it twice)."""
    records = {int(r["epoch"]): numbers(r) for r in map(json.loads, epochs.read_text().splitlines())}
    return bool(rows) and all(
        _close(numbers(row), records[int(row["epoch"])]) if int(row["epoch"]) in records else False for row in rows
    )


def _close(row: Mapping[str, float], record: Mapping[str, float]) -> bool:
    shared = row.keys() & record.keys()
    return bool(shared) and all(math.isclose(row[k], record[k], rel_tol=1e-3, abs_tol=1e-4) for k in shared)
