"""A clone of this repository in which a benchmark runs the pipeline, hurts it, and looks at what is left.

project = Project.clone(folder, small=True)
with project.start("repro") as run:          # `dvc repro`, in a session of its own, its output in a file
    run.wait_for("finetune", 60)
    run.kill(signal.SIGKILL, "everything")
project.repro()                               # until it ends well, as a person would: at most five times
project.outputs()                             # path -> hash of the bytes that lie there, by no tool's word
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("prepare", "validate", "finetune", "merge", "evaluate", "export", "register")
OTHERS_OWN = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "AUTOLORA_WORK", "PYTHONDONTWRITEBYTECODE")
SMALL: dict[str, dict[str, Any]] = {
    "finetune": {"epochs": 3},
    "evaluate": {"images": 20, "version": "fast"},
    "export": {"check_images": 2},
}
PATIENCE = 1800.0  # seconds after which a run counts as hanging
TRIES = 5  # that a person makes before giving up


@dataclass
class Ended:
    """How often it was started, how the last one ended, and what all of them said."""

    tries: int
    code: int
    text: str

    @property
    def tracebacks(self) -> int:
        return self.text.count("Traceback (most recent call last)")


@dataclass
class Run:
    process: psutil.Popen
    log: Path

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(signal.SIGKILL, "everything")

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def stage(self) -> tuple[str, psutil.Process] | None:
        """The stage that runs now, and its process."""
        for process in self.family():
            with suppress(psutil.Error):
                words = process.cmdline()
                if words[1:2] == ["-m"] and words[2].startswith("stages."):
                    return words[2].removeprefix("stages."), process
        return None

    def wait_for(self, stage: str, seconds: float = PATIENCE) -> bool:
        """False where the run ended before it came to that stage."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            if (now := self.stage()) and now[0] == stage:
                return True
            time.sleep(0.02)
        return False

    def stay_in(self, stage: str, seconds: float) -> None:
        """For so long, or until the stage has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (now := self.stage()) and now[0] == stage:
            time.sleep(0.02)

    def kill(self, number: signal.Signals, target: str) -> str | None:
        """Of `everything`, `dvc` or the `stage` alone; returns the stage that was running."""
        now = self.stage()
        aims = {"everything": self.family(), "dvc": self.family()[:1], "stage": [now[1]] if now else self.family()[:1]}
        for process in aims[target]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs(aims[target], timeout=60)
        return now[0] if now else None

    def ended(self) -> Ended:
        with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
            self.process.wait(PATIENCE)
        code = self.process.poll()
        return Ended(1, 124 if code is None else code, self.log.read_text(errors="replace"))


@dataclass
class Project:
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    runs: int = 0

    @classmethod
    def clone(cls, folder: Path, source: Path = ROOT, *, small: bool = False) -> Project:
        """What is committed there, not what lies beside it."""
        subprocess.run(["git", "clone", "-q", str(source), str(folder)], check=True)
        project = cls(folder)
        if small:
            project.change(SMALL)
        return project

    def copy(self, folder: Path) -> Project:
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, dict(self.env))

    def change(self, sections: Mapping[str, Mapping[str, Any]]) -> None:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        for section, values in sections.items():
            params[section] |= values
        path.write_text(yaml.safe_dump(params))

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in OTHERS_OWN}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        return kept | {"PATH": path, "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "1"} | self.env | dict(extra)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None, **how: Any) -> Run:
        self.runs += 1
        log = self.folder.parent / f"{self.folder.name}.{self.runs}.log"
        with open(log, "w") as file:
            process = psutil.Popen(
                [sys.executable, "-m", *(arguments if arguments[0] != "repro" else ("dvc", *arguments))],
                cwd=self.folder,
                env=self.environment(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                **how,
            )
        return Run(process, log)

    def repro(self, *arguments: str, env: Mapping[str, str] | None = None, tries: int = TRIES) -> Ended:
        """As a person does it: what another process still holds is tried again when that has ended."""
        text, number, code = "", 0, 1
        while number < tries and code not in (0, 124):
            with self.start("repro", *arguments, env=env) as run:
                ended = run.ended()
            text, number, code = text + ended.text, number + 1, ended.code
            if code:
                self.wait_for_orphans()
        return Ended(number, code, text)

    def wait_for_orphans(self, seconds: float = 300) -> None:
        """Stages that outlived the `dvc repro` that started them."""
        deadline = time.monotonic() + seconds
        while self.orphans() and time.monotonic() < deadline:
            time.sleep(0.2)

    def orphans(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if Path(process.cwd()).is_relative_to(self.folder) and process.pid != os.getpid():
                    found.append(process)
        return found

    def end_all(self) -> None:
        for process in self.orphans():
            with suppress(psutil.Error):
                process.kill()

    # --- what is left ---

    def outs(self) -> dict[str, list[str]]:
        """Stage -> paths of what it writes; the receipt and the card hold times and addresses of their own."""
        stages = yaml.safe_load((self.folder / "dvc.yaml").read_text())["stages"]
        return {
            name: [
                next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"] + stage.get("metrics", [])
            ]
            for name, stage in stages.items()
            if name != "register"
        }

    def outputs(self) -> dict[str, str]:
        return {path: digest(self.folder / path) for paths in self.outs().values() for path in paths}

    def lost(self) -> int:
        """Outputs that dvc.lock promises and DVC's cache does not hold, or holds with other bytes."""
        lock = self.folder / "dvc.lock"
        if not lock.exists():
            return 0
        promised = [
            out["md5"]
            for stage in yaml.safe_load(lock.read_text())["stages"].values()
            for out in stage["outs"]
            if not out["path"].startswith(("models/registered", "reports/card"))
        ]
        return sum(not self.holds(md5) for md5 in promised)

    def cached(self, md5: str) -> Path:
        return self.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]

    def holds(self, md5: str) -> bool:
        file = self.cached(md5)
        return file.is_file() and hashlib.md5(file.read_bytes()).hexdigest() == md5.removesuffix(".dir")

    def versions(self) -> int:
        """That the registry of this folder holds: one for one content, however often it was killed."""
        file = self.folder / "mlflow.db"
        if not file.exists():
            return 0
        with closing(sqlite3.connect(file)) as database:
            return database.execute("select count(*) from model_versions").fetchone()[0]


def digest(path: Path) -> str:
    """Of a file, or of a folder with the names in it; `absent` where there is neither."""
    if path.is_dir():
        parts = [f"{file.relative_to(path)} {digest(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"


def different(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    return [path for path in expected if found.get(path) != expected[path]]
