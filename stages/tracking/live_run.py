"""The run that MLflow shows while training goes on.

    with live(work, params.as_dict(), epochs=60) as on_epoch:     # in the finetune stage
        fit(..., on_epoch=on_epoch)                               # one record per epoch: {"epoch": 1, "lr": 0.01, ...}

It costs training nothing: records go to a queue, and a thread imports MLflow, waits for servers and gives up. What a
server missed is written by `register` from reports/training.csv. Files are the truth, MLflow mirrors them.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from autolora.common.files import read_json, write_json
from stages.tracking.client import (
    connect,
    experiment_id,
    log_epochs,
    log_params,
    numbers,
    shown_uri,
    tracking_uri,
)

LIVE_RECORD, LIVE_EPOCHS, LIVE_STAGE = "live.json", "live.jsonl", "finetune"
RETRY_SECONDS, GOODBYE_SECONDS = 30.0, 5.0


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
        self.mlflow: ModuleType | None = None
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
            with suppress(Exception):  # a driver that does not answer costs its figures, not the epochs
                self.monitor = self.monitor or _system_metrics(self.run_id)
            log_epochs(self.mlflow, self.run_id, self.waiting)
            self.waiting, self.next_try = [], 0.0
        except Exception:
            self.next_try = time.time() + RETRY_SECONDS

    def _finish(self, status: str) -> None:
        with suppress(Exception):
            if self.mlflow and self.run_id:
                if self.monitor:
                    self.monitor.finish()
                self._send()
                self.mlflow.MlflowClient().set_terminated(self.run_id, status)


def live_run_id(mlflow: ModuleType, folder: Path, params: Mapping[str, Any]) -> str:
    """The run of this work: the one begun before a crash, where the server still has it, else a new one."""
    client = mlflow.MlflowClient()
    with suppress(FileNotFoundError, KeyError, ValueError, mlflow.MlflowException):
        known = read_json(folder / LIVE_RECORD)
        if known["tracking_uri"] == shown_uri():
            client.update_run(known["run_id"], status="RUNNING")
            return known["run_id"]
    run = client.create_run(experiment_id(mlflow), run_name=f"finetune {folder.name[:8]}", tags={"stage": LIVE_STAGE})
    write_json(folder / LIVE_RECORD, {"run_id": run.info.run_id, "tracking_uri": shown_uri()})
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
            here = known["tracking_uri"] == shown_uri()
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
