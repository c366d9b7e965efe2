"""The faults of benchmarks.chaos other than kills of a run: each hurts a project, mends the cause, and goes on."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import yaml

from benchmarks._project import Ended, Project

CAPABILITIES_OVER_MODES = (1, 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: with them root writes anywhere
PR_CAPBSET_DROP = 24
DAY = 86_400


class NotHere(Exception):
    """This machine lacks what the fault needs."""


@dataclass
class Hurt:
    """How the last restart ended; versions: that the registry should hold then; lost: what the fault itself took."""

    ended: Ended
    versions: int = 1
    lost: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Place:
    """Where it all happens, and what an undisturbed run gives."""

    folder: Path
    finished: Project
    expected: dict[str, str]
    draw: random.Random
    small: bool

    def fresh(self, name: str) -> Project:
        folder = self.folder / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        return Project.clone(folder, self.finished.folder, small=self.small)  # the same commit, whatever comes after

    def copy(self, name: str) -> Project:
        """Of the finished run: what is hurt is its last stages, or what it left."""
        folder = self.folder / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        return self.finished.copy(folder)


class Room:
    """One project for one fault: a clone without a run, or a copy of the finished run."""

    def __init__(self, place: Place, name: str) -> None:
        self._fresh, self._copy = partial(place.fresh, name), partial(place.copy, name)
        self.draw, self.small = place.draw, place.small
        self.made: Project | None = None

    @property
    def project(self) -> Project:
        assert self.made is not None
        return self.made

    def fresh(self) -> Project:
        self.made = self._fresh()
        return self.made

    def copy(self) -> Project:
        self.made = self._copy()
        return self.made

    def aside(self) -> Project:
        """A copy whose outputs are not judged: the fault is about the registry."""
        return self._copy()


def mended(project: Project, *broken: Ended, notes: list[str]) -> Hurt:
    """Go on; the text of the runs that failed belongs to the fault, and must be readable."""
    ended = project.repro()
    ended.text = "".join(one.text for one in broken) + ended.text
    ended.tries += sum(one.tries for one in broken)
    return Hurt(ended, notes=notes)


def said(ended: Ended) -> str:
    """The line of ours, or DVC's last one."""
    lines = [line for line in ended.text.splitlines() if line.strip()]
    ours = [line for line in lines if line.split(":")[0] in STAGE_NAMES and "%|" not in line]
    return f"exit code {ended.code}: {(ours or lines or ['nothing'])[-1][:300]}"


STAGE_NAMES = ("prepare", "validate", "finetune", "merge", "evaluate", "export", "register", "ERROR")

# --- disk, permissions, clock ----------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={int(megabytes * 1024)}k"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, text=True)
    if made.returncode:
        raise NotHere(f"a small tmpfs cannot be mounted ({made.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk_full(room: Room) -> Hurt:
    """All that the run writes lies on a disk that fills up, at four sizes; then it grows."""
    project, broken, notes = room.fresh(), [], []
    ready = project.folder.with_name("ready")
    shutil.rmtree(ready, ignore_errors=True)
    shutil.move(project.folder, ready)
    with small_disk(project.folder, 500):
        shutil.copytree(ready, project.folder, symlinks=True, dirs_exist_ok=True)
        used = shutil.disk_usage(project.folder).used / 2**20
        for more in (1, 6, 16, 30):
            resize(project.folder, used + more)
            broken.append(project.repro(tries=1))
            notes.append(f"{more} MB: {said(broken[-1])}")
        resize(project.folder, used + 2000)
        hurt = mended(project, *broken, notes=notes)
        shutil.rmtree(ready)
        shutil.copytree(project.folder, ready, symlinks=True)  # to be looked at when the disk is gone
    shutil.rmtree(project.folder)
    ready.rename(project.folder)
    return hurt


def resize(folder: Path, megabytes: float) -> None:
    size = f"remount,size={int(megabytes * 1024)}k"
    subprocess.run(["mount", "-o", size, str(folder)], check=True)


def without_override() -> None:
    """Between fork and exec, as root: the modes of files count again."""
    libc = ctypes.CDLL(None)
    for capability in CAPABILITIES_OVER_MODES:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def no_permission(room: Room) -> Hurt:
    """models/, reports/ and .work cannot be written, one after the other."""
    project, broken, notes = room.fresh(), [], []
    for name in ("data", "models", "reports", ".work"):
        folder = project.folder / name
        folder.mkdir(exist_ok=True)
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        with project.start("repro", preexec_fn=without_override if os.geteuid() == 0 else None) as run:
            broken.append(run.ended())
        folder.chmod(mode)
        notes.append(f"{name}: {said(broken[-1])}")
    return mended(project, *broken, notes=notes)


def faketime() -> str:
    for found in sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")):
        return str(found)
    raise NotHere("libfaketime is not installed (apt-get install faketime)")


def clock_back(days: float) -> dict[str, str]:
    shift = f"-{int(days * DAY)}"
    return {"LD_PRELOAD": faketime(), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}


def clock_set_back(room: Room) -> Hurt:
    """Killed in the middle; when it goes on, it is three days earlier."""
    earlier = clock_back(3)
    project = room.fresh()
    with project.start("repro") as run:
        run.wait_for("merge")
        run.kill(signal.SIGKILL, "everything")
    ended = project.repro(env=earlier)
    return Hurt(ended, notes=["from merge on three days earlier"])


# --- two at once, a server that goes away ----------------------------------------------------------------------------


def second_repro(room: Room) -> Hurt:
    """At the same time, in the same folder."""
    project = room.fresh()
    with project.start("repro") as first, project.start("repro") as second:
        ends = [first.ended(), second.ended()]
    return mended(project, *ends, notes=[said(one) for one in ends if one.code])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/files"]
    env = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with open(folder / "log", "a") as log:
        server = psutil.Popen(command, cwd=folder, stdout=log, stderr=log, env=env, start_new_session=True)
    try:
        for _ in range(600):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if server.poll() is not None:
                raise RuntimeError((folder / "log").read_text()[-1000:])
            time.sleep(0.2)
        yield
    finally:
        for process in [server, *server.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.wait()


def server_goes_away(room: Room) -> Hurt:
    """There when training begins, gone in its middle, away at `register`, back for the last try."""
    project, port = room.fresh(), free_port()
    server = project.folder.with_name("server")
    shutil.rmtree(server, ignore_errors=True)
    project.env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    with mlflow_server(server, port):
        run = project.start("repro")
        run.wait_for("finetune")
        time.sleep(8)
    with run:
        gone = run.ended()
    with mlflow_server(server, port):
        hurt = mended(project, gone, notes=[said(gone)])
        shutil.copy(server / "server.db", project.folder / "mlflow.db")  # where the versions are counted
    return hurt


# --- files that were changed -----------------------------------------------------------------------------------------


def corrupted_cache(room: Room) -> Hurt:
    """A byte of a cached output is flipped and the output removed: DVC brings the wrong one back without a word.

    `python -m tools.check_cache --repair` is what a person is told to run after a disk's fault.
    """
    project = room.copy()
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text())["stages"]["merge"]["outs"]
    out = next(one for one in lock if one["path"] == "models/merged.safetensors")
    file, work = project.cached(out["md5"]), project.folder / out["path"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    mode = file.stat().st_mode
    file.chmod(0o644)
    file.write_bytes(content)
    file.chmod(mode)
    work.unlink()
    unseen = project.repro()
    alone = "saw it" if project.holds(out["md5"]) else "did not see it"
    with project.start("tools.check_cache", "--repair") as run:
        repaired = run.ended()
    return mended(project, unseen, repaired, notes=[f"`dvc repro` alone {alone}; after tools.check_cache --repair"])


def edited_output(room: Room) -> Hurt:
    """By hand: a figure made prettier, weights with a byte more, an output that is gone."""
    project = room.copy()
    report = project.folder / "reports/alpha_curve.csv"
    report.chmod(0o644)
    report.write_text(report.read_text().replace("0.", "0.9", 1))
    weights = project.folder / "models/merged.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes() + b"\0")
    (project.folder / "reports/export.json").unlink()
    return mended(project, notes=[])


def truncated_checkpoint(room: Room) -> Hurt:
    """Killed after some epochs; the newest file of its progress is then cut to half, and another to nothing."""
    project = room.fresh()
    with project.start("repro") as run:
        run.wait_for("finetune")
        work = project.folder / ".work/finetune"
        deadline = time.monotonic() + 600
        while not list(work.glob("*/*.pt")) and time.monotonic() < deadline and run.process.poll() is None:
            time.sleep(0.1)
        time.sleep(room.draw.uniform(0, 2))
        run.kill(signal.SIGKILL, "everything")
    files = sorted(work.glob("*/*.pt"), key=lambda file: file.stat().st_mtime)
    for file, share in zip(reversed(files), (0.5, 0.0)):
        with open(file, "r+b") as handle:
            handle.truncate(int(file.stat().st_size * share))
    return mended(project, notes=[f"cut: {', '.join(file.name for file in files[-2:])}"])


# --- promotion and deployment ----------------------------------------------------------------------------------------


def registry_kills(room: Room, kind: str) -> Hurt:
    from benchmarks import _registry_lives as lives  # with all that they import

    kills = 4 if room.small else 30
    project = room.aside()
    hit, wrong = getattr(lives, kind)(project, kills, room.draw)
    shutil.rmtree(project.folder)
    text = "\n".join(wrong)
    return Hurt(Ended(kills, int(bool(wrong)), text), lost=len(wrong), notes=[f"{hit} of {kills} kills hit"])


ALL: dict[str, Callable[[Room], Hurt]] = {
    "disk full": disk_full,
    "no write permission": no_permission,
    "clock set back": clock_set_back,
    "second repro at the same time": second_repro,
    "MLflow server goes away": server_goes_away,
    "corrupted file in the cache": corrupted_cache,
    "output edited by hand": edited_output,
    "truncated checkpoint": truncated_checkpoint,
    "kills in promote": partial(registry_kills, kind="promotions"),
    "kills in deploy": partial(registry_kills, kind="deployments"),
}
