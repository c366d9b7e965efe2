"""Lives of `promote` and `deploy` for benchmarks.chaos, forked from a server that has everything imported.

So a kill hits the decision, the download or the write, and not the start of Python.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

from autolora.common.files import file_sha256, read_json
from benchmarks._project import Project
from pipelines import deploy, promote
from pipelines.registry.decision_log import entries, reigns
from stages.tracking.client import connect

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["benchmarks._registry_lives", "mlflow", "onnxruntime", "sqlalchemy"])
NAME, SPEC = "robust-digits", re.compile(r"versions: \[ (\d+) \]")
Life = Callable[[Path], None]


class Registry:
    """Of a finished run: its version is champion and served; a second one has another licence in its file."""

    def __init__(self, project: Project) -> None:
        self.folder, self.database = project.folder, project.folder / "mlflow.db"
        project.change({"export": {"license": "Apache-2.0"}})
        if (ended := project.repro()).code:
            raise RuntimeError(ended.text[-2000:])
        with closing(sqlite3.connect(self.database)) as database:
            tags = database.execute("select version, value from model_version_tags where key = 'onnx_sha256'")
            self.hashes = {int(version): value for version, value in tags}
        self.alone(first)
        self.keep()

    def keep(self) -> None:
        shutil.copy(self.database, self.folder / "as it was.db")
        if not (self.folder / "service as it was").exists():
            shutil.copytree(self.folder / "service", self.folder / "service as it was")

    def restored(self) -> None:
        shutil.copy(self.folder / "as it was.db", self.database)
        shutil.rmtree(self.folder / "service")
        shutil.copytree(self.folder / "service as it was", self.folder / "service")

    def start(self, life: Life) -> multiprocessing.process.BaseProcess:
        process = SERVER.Process(target=alive, args=(life, self.folder))
        process.start()
        return process

    def alone(self, life: Life) -> float:
        """To its end; seconds."""
        began = time.monotonic()
        process = self.start(life)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{life.__name__} ended with {process.exitcode}: {self.said(life)}")
        return time.monotonic() - began

    def killed(self, life: Life, after: float, number: signal.Signals) -> bool:
        process = self.start(life)
        process.join(after)
        alive = process.is_alive()
        if alive:
            os.kill(process.pid or 0, number)
        process.join(60)
        process.kill()
        process.join()
        return alive

    def said(self, life: Life) -> str:
        return (self.folder / f"{life.__name__}.log").read_text()

    # --- what a server or a person sees ---

    def served(self) -> int | None:
        """The version that config.pbtxt names, or None where a server could not load it."""
        model = self.folder / "service" / NAME
        named = SPEC.search((model / "config.pbtxt").read_text())
        file = model / named[1] / "model.onnx" if named else model / "no such file"
        return int(named[1]) if named and file.is_file() and file_sha256(file) == self.hashes[int(named[1])] else None

    def recorded(self) -> int | None:
        return read_json(self.folder / "service" / NAME / "deployed.json")["current"]

    def champion(self) -> int | None:
        with closing(sqlite3.connect(self.database)) as database:
            found = database.execute("select version from registered_model_aliases where alias = 'champion'").fetchone()
        return int(found[0]) if found else None

    def history(self) -> list[int]:
        self.alone(tell)
        return list(read_json(self.folder / "history.json"))


def alive(life: Life, folder: Path) -> None:
    """In the forked process: its words go to a file, its registry is this folder's."""
    os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "AUTOLORA_WORK": str(folder / ".work")}
    os.chdir(folder)
    with open(f"{life.__name__}.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    life(folder)


FORCED = ["--force", "--why", "chaos: both are the same network"]


def first(folder: Path) -> None:
    sys.exit(promote.main([NAME, "1", *FORCED]) or deploy.main([f"{NAME}@champion", "--to", "service"]))


def promoting(folder: Path) -> None:
    code = promote.main([NAME, "2", *FORCED])
    sys.exit(0 if code == 0 or "champion already" in (folder / "promoting.log").read_text() else 1)


def deploying(folder: Path) -> None:
    sys.exit(deploy.main([f"{NAME}@champion", "--to", "service"]))


def tell(folder: Path) -> None:
    import json

    log = entries(connect().MlflowClient(), NAME)
    (folder / "history.json").write_text(json.dumps(reigns(log, "champion")))


def promotions(project: Project, kills: int, draw: Random) -> tuple[int, list[str]]:
    """How many kills hit, and everything that was wrong afterwards."""
    registry, hit, wrong = Registry(project), 0, []
    seconds = registry.alone(promoting)
    for number in range(kills):
        registry.restored()
        moment = draw.uniform(0, seconds)
        hit += registry.killed(promoting, moment, draw.choice((signal.SIGKILL, signal.SIGTERM)))
        wrong += problems(number, moment, lambda: after_promotion(registry))
    return hit, wrong


def after_promotion(registry: Registry) -> list[str]:
    registry.alone(promoting)
    found = {"champion": registry.champion(), "history": registry.history()}
    return [] if found == {"champion": 2, "history": [1, 2]} else [f"{found}"]


def deployments(project: Project, kills: int, draw: Random) -> tuple[int, list[str]]:
    registry, hit, wrong = Registry(project), 0, []
    registry.alone(promoting)
    registry.keep()
    seconds = registry.alone(deploying)
    for number in range(kills):
        registry.restored()
        moment = draw.uniform(0, seconds)
        hit += registry.killed(deploying, moment, draw.choice((signal.SIGKILL, signal.SIGTERM)))
        wrong += problems(number, moment, lambda: after_deployment(registry))
    return hit, wrong


def after_deployment(registry: Registry) -> list[str]:
    """At once something whole is served; after the next look it is the champion, and the record says so."""
    wrong = [] if registry.served() else ["nothing whole is served after the kill"]
    registry.alone(deploying)
    found: dict[str, Any] = {"served": registry.served(), "recorded": registry.recorded()}
    return wrong + ([] if found == {"served": 2, "recorded": 2} else [f"{found}"])


def problems(number: int, moment: float, look: Callable[[], Sequence[str]]) -> list[str]:
    try:
        return [f"kill {number} after {moment:.2f} s: {what}" for what in look()]
    except Exception as error:
        return [f"kill {number} after {moment:.2f} s: {type(error).__name__}: {str(error)[-300:]}"]
