"""A real Prefect server on sqlite and real workers, as processes of their own, kept out of the user's home."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREFECT = [sys.executable, "-m", "prefect"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, found: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError):
            if result := found():
                return result
        time.sleep(0.25)
    raise TimeoutError(f"{what}: not within {seconds:g} s")


class Server:
    """`environment` is what clients and workers need to talk to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self.workers = folder, free_port(), []
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_CLI_PROMPT": "false",
            "PYTHONPATH": str(ROOT),
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        self.process = self._spawn("server", [*PREFECT, "server", "start", "--port", str(self.port)], self.folder)
        wait_for("Prefect's server", self.answers)
        return self

    def answers(self) -> bool:
        with urllib.request.urlopen(f"{self.url}/health", timeout=2) as reply:
            return reply.status == 200

    def worker(self, name: str, folder: Path, **extra: str) -> subprocess.Popen[bytes]:
        command = [*PREFECT, "worker", "start", "--pool", "gpu", "--name", name, "--limit", "1"]
        process = self._spawn(name, command, folder, **extra)
        self.workers.append(process)
        return process

    def run(self, *command: str, folder: Path = ROOT) -> str:
        done = subprocess.run([*command], cwd=folder, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _spawn(self, name: str, command: list[str], folder: Path, **extra: str) -> subprocess.Popen[bytes]:
        env = self.environment | extra
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def stop(self) -> None:
        for process in [*self.workers, self.process]:
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in [*self.workers, self.process]:
            if process:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()
