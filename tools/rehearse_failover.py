"""Rehearse a death: a server, two workers, one of them killed with -9 in mid-training, and the timeline to the version.

    python -m tools.rehearse_failover                  this repository, with a short training; some minutes
    python -m tools.rehearse_failover --epochs 30 --images 100
    python -m tools.rehearse_failover --undisturbed SHA256   of robust.safetensors as an earlier rehearsal printed it

Everything happens in a temporary folder: server (sqlite), clones of HEAD for the two workers, DVC's cache, progress and
MLflow. At the end the fine-tuned weights are compared with those of an undisturbed `dvc repro`, which knows nothing of
server, cache and progress: same commit, same parameters, one thread. Any difference is exit code 1. The tests use the
same Server.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from autolora.common.command_line import Command
from autolora.common.files import file_sha256
from pipelines.execution import commands
from pipelines.workspace import params_file

ROOT = Path(__file__).resolve().parents[1]
ENDS = {"COMPLETED", "FAILED", "CANCELLED"}
PREFECT = [sys.executable, "-m", "prefect"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, found: Callable[[], Any], seconds: float = 300) -> Any:
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
        self.folder, self.port = folder, free_port()
        self.workers: list[subprocess.Popen[bytes]] = []
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
            "DO_NOT_TRACK": "true",
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

    def restart(self) -> None:
        """As after a crash of its machine."""
        assert self.process
        self.process.kill()
        self.process.wait()
        self.start()

    def worker(self, name: str, folder: Path, pool: str = "gpu", **extra: str) -> subprocess.Popen[bytes]:
        command = [*PREFECT, "worker", "start", "--pool", pool, "--name", name, "--limit", "1"]
        process = self._spawn(name, command, folder, **extra)
        self.workers.append(process)
        return process

    def run(self, *command: str, folder: Path = ROOT) -> str:
        done = subprocess.run([*command], cwd=folder, env=self.environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def last(self, name: str) -> str:
        """The last line of a worker's log that says something of a run."""
        return next((line for line in reversed(self.log(name).splitlines()) if "run '" in line), "")

    def _spawn(self, name: str, command: list[str], folder: Path, **extra: str) -> subprocess.Popen[bytes]:
        env = self.environment | extra
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def setup(self, silence: float) -> None:
        """What deploy/setup.sh does, for the pool that is used here, with less patience."""
        self.run(*PREFECT, "work-pool", "create", "gpu", "--type", "process")
        self.run(*PREFECT, "--no-prompt", "deploy", "--name", "rebuild/gpu", "--name", "rebuild/gpu-cell")
        self.run(sys.executable, "-m", "pipelines.execution.automations", "--silence", str(silence))

    def submit(self, deployment: str, **parameters: Any) -> str:
        """The id of the new flow run."""
        deployment_id = self.ask(f"deployments/name/{deployment}")["id"]
        return self.ask(f"deployments/{deployment_id}/create_flow_run", {"parameters": parameters})["id"]

    def flow_run(self, identity: str) -> dict[str, Any]:
        return self.ask(f"flow_runs/{identity}")

    def states(self, identity: str) -> list[dict[str, Any]]:
        return self.ask(f"flow_run_states/?flow_run_id={identity}")

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"content-type": "application/json"})

        def answer() -> Any:
            """An error 503 is sqlite being busy on a busy machine: Prefect's own client tries again, too."""
            try:
                with urllib.request.urlopen(request, timeout=30) as reply:
                    return {"answer": json.load(reply)}
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise RuntimeError(f"{path}: {error.code} {error.read().decode()}") from None
                raise

        return wait_for(path, answer)["answer"]

    def stop(self) -> None:
        for process in [*self.workers, self.process]:
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in [*self.workers, self.process]:
            if process:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                process.wait()


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
    return folder


def rehearse(folder: Path, overrides: dict[str, Any]) -> dict[str, str]:
    """The digests of the weights that the second worker has finished."""
    server = Server(folder / "server")
    server.environment |= {
        "AUTOLORA_WORK": str(folder / "work"),
        "AUTOLORA_CACHE": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
    }
    try:
        say("server", server.start().url)
        server.setup(silence=75)
        clones = {name: clone(folder / name) for name in ("first", "second")}
        first = server.worker("first", clones["first"])
        wait_for("the first worker", lambda: "started" in server.log("first"))
        run = server.submit("rebuild/gpu-cell", overrides=overrides)
        say("scheduled", run)
        kill_in_mid_training(server, first, folder / "work" / "finetune")
        server.worker("second", clones["second"])
        say("second worker", "started")
        wait_for("the end of the run", lambda: server.flow_run(run)["state_type"] in ENDS, 1800)
        timeline(server, run, folder)
        return outcome(clones["second"], folder)
    finally:
        server.stop()


def kill_in_mid_training(server: Server, worker: subprocess.Popen[bytes], progress: Path) -> None:
    """Once a checkpoint is there; every descendant must be gone soon after."""
    wait_for("a checkpoint", lambda: any(progress.glob("*/*.pt")), 900)
    time.sleep(3)
    family = psutil.Process(worker.pid).children(recursive=True)
    worker.kill()
    say("killed", f"kill -9 of the first worker, with {len(family)} descendants: {server.last('first')}")
    _, alive = psutil.wait_procs(family, timeout=30)
    say("children", "all gone" if not alive else f"STILL ALIVE: {alive}")


def first_step(log: str) -> str:
    """Where the training stood when a worker first reported it."""
    return next((line.split(" - ", 1)[-1] for line in log.splitlines() if "dvc finetune" in line and "%|" in line), "")


def timeline(server: Server, run: str, folder: Path) -> None:
    for state in sorted(server.states(run), key=lambda state: state["timestamp"]):
        print(f"  {state['timestamp'][11:19]}  {state['name']:<14} {state.get('message') or ''}")
    say("went on", first_step(server.log("second")))
    receipts = sorted((folder / "work" / "rebuilds").glob("*/models/registered.json"))
    for file in receipts:
        receipt = json.loads(file.read_text())
        say("registered", f"{receipt['name']} version {receipt['version']}")
    if not receipts:
        say("registered", f"nothing: {server.last('second')}")


def outcome(place: Path, folder: Path) -> dict[str, str]:
    """What the dead worker's run has come to: DVC's cache has it, and the dvc.lock that the run has left says where."""
    (kept,) = (folder / "work" / "rebuilds").iterdir()
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(kept / name, place / name)
    dvc(place, "config", "--local", "cache.dir", str(folder / "cache"))
    dvc(place, "checkout", "models/finetuned")
    return digests(place)


def undisturbed(place: Path, overrides: dict[str, Any]) -> dict[str, str]:
    """The same commit and parameters, trained by plain `dvc repro` from nothing, on as many threads."""
    params_file.override(place, overrides)
    dvc(place, "repro", "finetune")
    return digests(place)


def dvc(folder: Path, *arguments: str) -> None:
    taken = ("AUTOLORA_WORK", "AUTOLORA_CACHE", "AUTOLORA_REMOTE", "PREFECT_API_URL")
    env = {key: value for key, value in commands.environment(OMP_NUM_THREADS="1").items() if key not in taken}
    env["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=env, check=True, capture_output=True)


def digests(place: Path) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in sorted((place / "models" / "finetuned").glob("*.safetensors"))}


def compare(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    """Prints both sides; a file that one of them lacks is a difference."""
    equal = bool(theirs) and all(ours.get(name) == digest for name, digest in theirs.items())
    for name in sorted(theirs):
        say("after the kill", f"{ours.get(name, 'missing')}  {name}")
        say("undisturbed", f"{theirs[name]}  {name}")
    say("weights", "equal to the bit" if equal else "DIFFERENT")
    return equal


def say(what: str, detail: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {what:<14} {detail}", flush=True)


def main() -> None:
    parser = Command(
        __doc__,
        reads="this repository as it is committed",
        writes="a temporary folder; prints the timeline",
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=20, help="that AutoAttack is run on")
    parser.add_argument("--undisturbed", metavar="SHA256", help="of robust.safetensors as an undisturbed run has it")
    args = parser.parse_args()
    overrides = {"finetune.epochs": args.epochs, "evaluate.images": args.images, "evaluate.version": "fast"}
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as name:
        folder = Path(name)
        ours = rehearse(folder, overrides | {"export.check_images": min(5, args.images)})
        theirs = {"robust.safetensors": args.undisturbed} if args.undisturbed else None
        sys.exit(not compare(ours, theirs or undisturbed(clone(folder / "undisturbed"), overrides)))


if __name__ == "__main__":
    main()
