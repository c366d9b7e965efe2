"""The flows on a real Prefect server (sqlite), a real pool and two real worker processes, real DVC and real git.

In this order: what needs no worker first, the death of a worker last.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines.execution import work_pools
from pipelines.execution.work_pools import PoolError
from tests.pipelines.conftest import ROOT, git
from tests.registry.synthetic import make_run
from tools.rehearse_failover import ENDS, PREFECT, Server, wait_for

pytestmark = pytest.mark.slow

SWEEP = {
    "stages": ["report"],
    "first": "prepare",
    "grid": {"train.method": ["plain", "broken"], "seed": [0, 1]},
    "over": "seed",
    "baseline": {"train.method": "plain"},
}


PAIR = {"stages": ["report"], "grid": {"seed": [0, 1]}, "over": "seed"}
ONE_BROKEN = SWEEP | {"grid": {"train.method": ["plain", "broken"], "seed": [0]}}


@pytest.fixture(scope="module")
def deployed(server: Server) -> Server:
    """deploy/setup.sh against the real server."""
    server.run("bash", str(ROOT / "deploy" / "setup.sh"))
    return server


@pytest.fixture
def toy(template: Path, tmp_path: Path) -> Path:
    return clone(template, tmp_path / "project")


def clone(template: Path, to: Path, **train: object) -> Path:
    """A project with a sweep, the flows where prefect.yaml expects them, and these parameters of training."""
    project = Path(shutil.copytree(template, to))
    (project / "presets" / "sweeps").mkdir(parents=True)
    for name, sweep in {"toy": SWEEP, "pair": PAIR, "one-broken": ONE_BROKEN}.items():
        (project / "presets" / "sweeps" / f"{name}.yaml").write_text(yaml.safe_dump(sweep))
    params = yaml.safe_load((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(yaml.safe_dump(params | {"train": params["train"] | train}))
    (project / ".git" / "info" / "exclude").write_text("pipelines\n")
    (project / "pipelines").symlink_to(ROOT / "pipelines")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "a sweep")
    return project


def call(server: Server, project: Path, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """`python -m ...` as a user gives it."""
    env = server.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlflow.db'}"} | extra
    return subprocess.run([sys.executable, "-m", *command], cwd=project, env=env, capture_output=True, text=True)


def weights(prepared: str, epochs: int) -> str:
    """What an uninterrupted training comes to, computed here once more."""
    state = prepared
    for _ in range(epochs):
        state = hashlib.sha256(state.encode()).hexdigest()
    return state


def test_prefect_yaml_is_deployed_by_prefect_itself(deployed):
    """Three kinds of pools, nine deployments, the two automations."""
    server = deployed
    pools = {pool["name"]: pool["type"] for pool in server.ask("work_pools/filter", {})}
    assert pools == {"gpu": "process", "control": "process", "docker": "docker", "kubernetes": "kubernetes"}
    deployments = server.ask("deployments/filter", {})
    assert len(deployments) == 9
    one_at_a_time = {
        d["entrypoint"].split(":")[1] + "/" + d["name"] for d in deployments if d["global_concurrency_limit"]
    }
    assert one_at_a_time == {"rebuild/gpu", "rebuild/docker", "deploy/control"}
    names = {automation["name"] for automation in server.ask("automations/filter", {})}
    assert names == {"autolora: silent runs have crashed", "autolora: crashed runs are scheduled again"}


def test_setup_again_leaves_what_users_have_set(deployed):
    server = deployed
    server.run(*PREFECT, "work-pool", "set-concurrency-limit", "docker", "3")
    server.run(*PREFECT, "work-pool", "pause", "docker")
    said = server.run("bash", str(ROOT / "deploy" / "setup.sh"))
    assert "pool docker is there already, and stays as it is" in said
    docker = server.ask("work_pools/docker")
    assert (docker["concurrency_limit"], docker["is_paused"]) == (3, True)


def test_a_worker_that_is_told_so_makes_no_pool(deployed):
    server = deployed
    start = ["worker", "start", "--pool", "nobody", "--type", "process", "--run-once"]
    server.run(*PREFECT, *start, "--no-create-pool-if-not-found")
    assert "nobody" not in {pool["name"] for pool in server.ask("work_pools/filter", {})}


def test_a_pool_without_workers_says_so_and_how_to_start_one(deployed, toy):
    server = deployed
    done = call(server, toy, "pipelines.rebuild", "--pool", "gpu")
    assert done.returncode == 1
    assert "no worker is online in pool gpu" in done.stderr
    assert "prefect worker start --pool gpu" in done.stderr
    assert not server.ask("flow_runs/filter", {})


def test_a_cell_that_is_at_work_is_not_started_twice(deployed):
    """A sweep that was stopped and is given again: its runs go on without it. No worker takes this one."""
    cell, what = {"stages": ["report"], "overrides": {"seed": 1}, "revision": "a" * 40}, "cell sweeps/toy/1"
    with temporary_settings({PREFECT_API_URL: deployed.url}):
        assert work_pools.live_run(cell, what) is None
        run = work_pools.new_run("rebuild/kubernetes-cell", cell, what)
        assert work_pools.live_run(cell, what).id == run.id
        assert work_pools.live_run(cell, "first sweeps/toy/1") is None
        with pytest.raises(PoolError, match=f"otherwise: wait, or `prefect flow-run cancel {run.id}`"):
            work_pools.live_run(cell | {"revision": "b" * 40}, what)
        deployed.ask(f"flow_runs/{run.id}/set_state", {"state": {"type": "FAILED"}, "force": True})
        assert work_pools.live_run(cell, what) is None
        deployed.run(*PREFECT, "flow-run", "delete", str(run.id))


def test_a_stage_that_hangs_is_killed_with_its_child_and_the_run_fails(server, template, tmp_path):
    project = clone(template, tmp_path / "project", method="hangs")
    file = project / "dvc.yaml"
    file.write_text(file.read_text().replace("minutes: 2, retries: 1", "minutes: 0.1, retries: 0"))
    done = call(server, project, "pipelines.rebuild", "--uncommitted")
    assert done.returncode == 1
    assert "no end after 6 s, killed with its children" in done.stderr
    assert not [pid for pid in pids_of(server) if psutil.pid_exists(pid)]


def pids_of(server: Server) -> list[int]:
    """The trainings of this server, and the child of each."""
    files = Path(server.environment["AUTOLORA_WORK"]).glob("train/*/pids")
    return [int(pid) for file in files for line in file.read_text().splitlines() for pid in line.split()[:2]]


def test_slots_are_strict_one_training_a_gpu(server, monkeypatch, tmp_path):
    """Two processes ask for the one GPU: the second gets it when the first has given it back."""
    code = (
        "import time; from pipelines.execution import gpu_slots as slots\n"
        "with slots.held(1, ['gpu-x']) as taken:\n"
        "    print(time.time(), flush=True); time.sleep(3); print(time.time(), taken, flush=True)"
    )
    env = server.environment
    both = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    lines = [process.communicate(timeout=120)[0].splitlines() for process in both]
    (start_a, end_a), (start_b, end_b) = ([float(line.split()[0]) for line in each] for each in lines)
    assert end_a <= start_b or end_b <= start_a
    assert "['gpu-x']" in lines[0][1]
    missing = (
        "from contextlib import ExitStack; from pipelines.execution.gpu_slots import take_slot\n"
        "take_slot('gpu-y', ExitStack())"
    )
    done = subprocess.run([sys.executable, "-c", missing], env=env, capture_output=True, text=True)
    assert "no slot gpu:gpu-y on the server" in done.stderr


def test_a_slot_that_ran_out_while_the_server_was_away_is_taken_again(server):
    """Its renewals fail until the server is back; there the lease is gone, as one that has run out."""
    code = (
        "import sys; from pipelines.execution import gpu_slots as slots\n"
        "slots.RENEWAL = 0.1\n"
        "with slots.held(1, ['gpu-z']):\n"
        "    print('held', flush=True); sys.stdin.readline()"
    )

    def leases() -> set[str]:
        return {file.stem for file in (Path(server.environment["PREFECT_HOME"])).glob("concurrency_leases/*-*.json")}

    def active() -> int:
        return server.ask("v2/concurrency_limits/gpu:gpu-z")["active_slots"]

    before = leases()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=server.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    (lost,) = leases() - before
    server.restart()
    release = (
        f"from prefect import get_client\nget_client(sync_client=True).release_concurrency_slots_with_lease('{lost}')"
    )
    server.run(sys.executable, "-c", release)
    wait_for("another lease", lambda: leases() - before - {lost}, 30)
    assert active() == 1
    process.communicate("\n", timeout=120)
    assert (process.returncode, active(), leases()) == (0, 0, before)


def test_the_server_restarts_during_a_run(server, template, tmp_path):
    project = clone(template, tmp_path / "project", epochs=20, seconds=0.5)
    env = server.environment
    command = [sys.executable, "-m", "pipelines.rebuild"]
    process = subprocess.Popen(
        command, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for("a checkpoint", lambda: checkpoint(server, 3))
    server.restart()
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    assert (project / "weights.txt").read_text() == weights((project / "prepared.txt").read_text(), 20)


def checkpoint(server: Server, epoch: int) -> bool:
    files = list(Path(server.environment["AUTOLORA_WORK"]).glob("train/*/checkpoint.txt"))
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return bool(newest) and int(newest.read_text().split()[0]) >= epoch


def test_sweep_goes_on_past_a_failed_cell_and_resumes_it(server, toy):
    """Four cells, two of them broken: the other two make the table; mended, only the broken ones are done again."""
    home = Path(server.environment["HOME"])
    before = prepared(home)
    first = call(server, toy, "pipelines.sweep", "toy", "--at-once", "2")
    assert first.returncode == 1
    assert "2 of 4 cells failed" in first.stderr
    assert "train: method is 'broken'" in first.stdout + first.stderr
    table = toy / "reports" / "sweeps" / "toy"
    assert [(row["n"], row["missing"]) for row in read(table / "table.csv")] == [("2", "0"), ("0", "2")]
    assert prepared(home) == before + 2  # once per seed, not once per cell
    (home / "mended").touch()
    second = call(server, toy, "pipelines.sweep", "toy", "--at-once", "2")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "4 cells, 2 of them to do" in second.stdout + second.stderr
    assert prepared(home) == before + 2
    rows = read(table / "table.csv")
    assert [row["n"] for row in rows] == ["2", "2"]
    assert rows[1][
        "p_images"
    ]  # two trainings that differ from the baseline by the same: nothing is said of other seeds
    assert (table / "table.png").stat().st_size > 5000
    assert not list((toy / ".work" / "workspaces").glob("*"))
    assert parent_and_children(toy) == (1, 4)


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_cells_through_the_task_runner_of_dask_or_ray(server, toy, kind):
    """In a cluster of two workers that is started for it: a good cell comes back, and why the other failed."""
    pytest.importorskip(f"prefect_{kind}", reason=f"needs prefect-{kind} (uv sync --group clusters)")
    home = Path(server.environment["HOME"])
    (home / "mended").unlink(missing_ok=True)
    before = prepared(home)
    done = call(server, toy, "pipelines.sweep", "one-broken", "--runner", kind, "--at-once", "2")
    assert done.returncode == 1
    assert "1 of 2 cells failed" in done.stderr
    assert "train: method is 'broken'" in done.stdout + done.stderr
    assert prepared(home) == before + 1
    rows = read(toy / "reports" / "sweeps" / "one-broken" / "table.csv")
    assert [(row["n"], row["missing"]) for row in rows] == [("1", "0"), ("0", "1")]


def prepared(home: Path) -> int:
    """How often the stage `prepare` of any toy project has really run."""
    return (home / "prepared.log").read_text().count("prepared") if (home / "prepared.log").exists() else 0


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def parent_and_children(project: Path) -> tuple[int, int]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    files = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert {"table.csv", "table.md", "table.png"} <= files
    return len(parents), len(runs) - len(parents)


def test_cells_fan_out_over_the_workers_of_a_pool(deployed, template, tmp_path):
    """Two workers in clones of their own, with one cache and one place for progress: both take cells."""
    server = deployed
    shared = {"AUTOLORA_WORK": str(tmp_path / "work"), "AUTOLORA_CACHE": str(tmp_path / "cache")}
    project = clone(template, tmp_path / "project", epochs=20, seconds=0.25)
    names = ("left", "right")
    workers = [
        server.worker(name, shutil.copytree(project, tmp_path / name, symlinks=True), **shared) for name in names
    ]
    wait_for("both workers", lambda: all("started" in server.log(name) for name in names))
    done = call(server, project, "pipelines.sweep", "pair", "--pool", "gpu", **shared)
    for worker in workers:
        worker.terminate()
        worker.wait(300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [server.log(name).count("Running stage 'train'") for name in names] == [1, 1]
    assert [row["n"] for row in read(project / "reports" / "sweeps" / "pair" / "table.csv")] == ["2"]


def test_promotion_and_deployment_as_deployments(deployed, tmp_path):
    """Through the server and a worker of the pool `control`, on a registry with one version; a refusal fails."""
    server = deployed
    folder = make_run(tmp_path / "run")
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    mlflow = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "AUTOLORA_SERVICE": str(tmp_path / "triton"),
    }
    env = server.environment | mlflow
    subprocess.run([sys.executable, "-m", "stages.register"], cwd=folder, env=env, check=True, capture_output=True)
    worker = server.worker("control", folder, pool="control", **mlflow)

    def ask(deployment: str, **parameters: Any) -> str:
        run = server.submit(deployment, **parameters)
        return wait_for(deployment, lambda: server.flow_run(run)["state_type"] in ENDS and server.flow_run(run))[
            "state_type"
        ]

    assert ask("promote/control", name="synthetic", version=1) == "COMPLETED"
    assert ask("deploy/control", model="synthetic@champion", to=str(tmp_path / "triton")) == "COMPLETED"
    assert "versions: [ 1 ]" in (tmp_path / "triton" / "synthetic" / "config.pbtxt").read_text()
    assert ask("promote/control", name="synthetic", version=1) == "FAILED"
    assert "synthetic version 1 is champion already" in server.log("control")
    worker.terminate()
    worker.wait(300)


def test_a_worker_killed_in_mid_training_and_another_that_goes_on(deployed, template, tmp_path):
    """kill -9: its children die with it; the run is noticed, scheduled again, resumed, and ends in the same weights."""
    server = deployed
    server.run(sys.executable, "-m", "pipelines.execution.automations", "--silence", "40")
    assert len(server.ask("automations/filter", {})) == 2  # a second time they are changed, not made again
    shutil.rmtree(server.environment["AUTOLORA_WORK"], ignore_errors=True)
    clones = {name: clone(template, tmp_path / name, epochs=40, seconds=0.25) for name in ("one", "two")}
    workers = {name: server.worker(name, folder, CUDA_VISIBLE_DEVICES=f"gpu-{name}") for name, folder in clones.items()}
    wait_for("both workers", lambda: all("started" in server.log(name) for name in clones))
    run = server.submit("rebuild/gpu")
    wait_for("a checkpoint", lambda: checkpoint(server, 3))
    hit = next(name for name in clones if "dvc train" in server.log(name))
    other = next(name for name in clones if name != hit)
    family = psutil.Process(workers[hit].pid).children(recursive=True)
    assert len(family) >= 4  # the flow, the process guard, dvc, the training, and its child
    workers[hit].kill()
    assert not psutil.wait_procs(family, timeout=20)[1]
    wait_for("the end of the run", lambda: server.flow_run(run)["state_type"] == "COMPLETED", 240)
    names = [state["name"] for state in sorted(server.states(run), key=lambda state: state["timestamp"])]
    assert [name for name in names if name in ("Running", "Crashed", "AwaitingRetry", "Completed")] == [
        "Running", "Crashed", "AwaitingRetry", "Running", "Completed"
    ]  # fmt: skip
    assert "resumed after epoch" in server.log(other)
    assert f"gpu-{other}" in next(Path(server.environment["AUTOLORA_WORK"]).glob("train/*/pids")).read_text()
    assert (clones[other] / "weights.txt").read_text() == weights((clones[other] / "prepared.txt").read_text(), 40)
