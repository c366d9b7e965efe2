"""Every deployment file, judged by its engine's own schema or linter: no Docker and no cluster is needed for that."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import yaml

from tests.pipelines.conftest import ROOT, prefect_takes

DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.executable).parent
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if not (TOOLS / name).is_file():
        pytest.skip(f"needs {name} (dependency group dev)")
    return subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True)


def compose(file: Path) -> subprocess.CompletedProcess[str]:
    return tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))


def test_compose_file_and_a_planted_fault(tmp_path):
    assert compose(DEPLOY / "compose.yaml").returncode == 0
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    content["services"]["worker"]["volume"] = ["a:/b"]
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(content))
    assert "'volume' was unexpected" in compose(tmp_path / "compose.yaml").stdout


def test_compose_services_depend_on_services_that_exist():
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = content["services"]
    assert {"mlflow", "prefect", "postgres", "minio", "worker", "worker-gpu"} <= services.keys()
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()
        named = {volume.split(":")[0] for volume in service.get("volumes", [])} - {".."}
        assert named <= content["volumes"].keys()


def test_no_password_is_written_down():
    for file in DEPLOY.rglob("*"):
        if file.is_file() and file.suffix in (".yaml", ".json", ".sh", ".example"):
            for line in file.read_text().splitlines():
                name, _, value = line.strip().partition(":" if file.suffix == ".yaml" else "=")
                if name.endswith(("PASSWORD", "SECRET_ACCESS_KEY")):
                    assert not value.strip() or value.strip().startswith("${")


def test_dockerfile_and_a_planted_fault(tmp_path):
    done = tool("hadolint", str(DEPLOY / "Dockerfile"))
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && apt-get install git\n")
    assert "DL3006" in tool("hadolint", str(tmp_path / "Dockerfile")).stdout


def test_dockerfile_copies_files_that_exist():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            assert all((ROOT / source).exists() for source in line.split()[1:-1])


@pytest.mark.parametrize("script", sorted(DEPLOY.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert subprocess.run([shutil.which("bash") or "bash", "-n", str(script)]).returncode == 0


def kubernetes(manifest: dict) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate (dependency group dev)")
    validate.validate(manifest, "1.33", strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_manifests(file):
    documents = list(yaml.safe_load_all(file.read_text()))
    for document in documents:
        kubernetes(document)
    wrong = copy.deepcopy(documents[-1])
    wrong["spec"]["replicaz"] = 1
    with pytest.raises(Exception, match="replicaz"):
        kubernetes(wrong)


def rendered(**values) -> dict:
    """The Job that Prefect's worker would create: its own templating, with the pool's defaults and these values."""
    from prefect.utilities.templating import apply_values

    template = json.loads((DEPLOY / "kubernetes" / "job-template.json").read_text())
    defaults = {
        name: v["default"] for name, v in template["variables"]["properties"].items() if v.get("default") is not None
    }
    # What the worker itself puts in; Kubernetes wants lists where the template speaks of command and env.
    own = {
        "command": ["python", "-m", "prefect.engine"],
        "env": [{"name": "A", "value": "b"}],
        "name": "run",
        "labels": {},
    }
    job = apply_values(template["job_configuration"]["job_manifest"], own | defaults | values)
    return json.loads(json.dumps(job))


def test_kubernetes_job_template_renders_to_a_valid_job():
    job = rendered(gpus=4, shared_memory="16Gi", node_selector={"gpu": "h200"})
    kubernetes(job)
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


@pytest.mark.parametrize("name", ["docker-job-template.json", "kubernetes/job-template.json"])
def test_job_templates_use_only_variables_that_they_declare(name):
    """And prefect.yaml sets no variable that a pool does not know."""
    template = json.loads((DEPLOY / name).read_text())
    variables = template["variables"]["properties"]
    used = {part.split("}}")[0].strip() for part in json.dumps(template["job_configuration"]).split("{{")[1:]}
    assert used <= variables.keys()
    pool = "docker" if name.startswith("docker") else "kubernetes"
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    given = [d["work_pool"].get("job_variables", {}) for d in deployments if d["work_pool"]["name"] == pool]
    assert given
    assert all(settings.keys() <= variables.keys() for settings in given)


def test_docker_asks_for_gpus_as_docker_s_client_wants_them():
    """device_requests are handed to the Docker SDK as they are: driver, count, and a list of lists of capabilities."""
    variables = json.loads((DEPLOY / "docker-job-template.json").read_text())["variables"]["properties"]
    assert variables["device_requests"]["default"] == [{"driver": "nvidia", "count": -1, "capabilities": [["gpu"]]}]


def test_a_run_in_docker_knows_the_addresses_of_compose_s_network(monkeypatch):
    """What Prefect's worker makes of template and deployment; the server's address that it has itself is the host's."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.workers.base import BaseJobConfiguration

    template = json.loads((DEPLOY / "docker-job-template.json").read_text())
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    given = next(d["work_pool"]["job_variables"] for d in deployments if d["name"] == "docker-cell")
    monkeypatch.setenv("WORKER_S3_PASSWORD", "of the worker's shell")
    with temporary_settings({PREFECT_API_URL: "http://localhost:4200/api"}):
        job = asyncio.run(BaseJobConfiguration.from_template_and_values(template, {"env": given["env"], "name": "run"}))
        job.prepare_for_flow_run(FlowRun(flow_id=uuid.uuid4(), name="run"))
    clients = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["x-clients"]
    same = [*(name for name in clients if name.startswith("AUTOLORA_REMOTE")), "PREFECT_API_URL", "MLFLOW_TRACKING_URI"]
    assert {name: job.env.get(name) for name in same} == {name: clients[name] for name in same}
    assert job.env["AWS_ACCESS_KEY_ID"] == clients["AWS_ACCESS_KEY_ID"]
    assert job.env["AWS_SECRET_ACCESS_KEY"] == "of the worker's shell"
    assert job.env["AUTOLORA_WORK"] == given["env"]["AUTOLORA_WORK"]  # and what the deployment says beside them


# By these a run would leave its container: they are the pool's, and no variable of a run reaches them.
OF_THE_POOL = {
    "docker-job-template.json": {
        "privileged", "volumes", "networks", "network_mode", "container_create_kwargs", "cap_add", "pid_mode",
    },
    "kubernetes/job-template.json": {
        "namespace", "service_account_name", "cluster_config", "shared_claim", "job_manifest", "volumes",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_POOL)
def test_a_run_cannot_leave_its_container(name):
    """A run of the worst intent, through the worker's own templating: nothing of it arrives in the job."""
    from prefect.utilities.templating import apply_values

    template = json.loads((DEPLOY / name).read_text())
    declared = template["variables"]["properties"]
    assert not declared.keys() & OF_THE_POOL[name]
    defaults = {key: value.get("default") for key, value in declared.items()}
    worst = dict.fromkeys(OF_THE_POOL[name], "/var/run/docker.sock:/escape")
    job = json.dumps(apply_values(template["job_configuration"], defaults | worst))
    assert "escape" not in job
    assert ("no-new-privileges" if name.startswith("docker") else '"allowPrivilegeEscalation": false') in job


def test_the_kubernetes_worker_is_one_of_that_type_also_before_the_pool_is_made():
    deployment = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "worker.yaml").read_text()))[-1]
    program, *arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert program == "prefect"
    taken = prefect_takes(*arguments)
    assert (taken["work_pool_name"], taken["worker_type"]) == ("kubernetes", "kubernetes")
    assert not taken["create_pool_if_not_found"]  # it would be one of Prefect's template, without ours


def test_jobs_on_kubernetes_name_the_secret_of_prefect_s_password():
    """And do not hold it: by two settings of prefect-kubernetes, of the secret that the head of the file makes."""
    text = (DEPLOY / "kubernetes" / "worker.yaml").read_text()
    worker = list(yaml.safe_load_all(text))[-1]["spec"]["template"]["spec"]["containers"][0]
    auth = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_"
    told = {one["name"].removeprefix(auth): one["value"] for one in worker["env"] if one["name"].startswith(auth)}
    secrets = [source["secretRef"]["name"] for source in worker["envFrom"] if "secretRef" in source]
    assert [told["NAME"]] == secrets
    assert f"create secret generic {told['NAME']} " in text
    assert f"--from-literal={told['KEY']}=" in text


def test_documented_workers_of_other_pools_than_processes_say_their_type():
    for file in [*(ROOT / "docs").glob("*.md"), *DEPLOY.rglob("*.sh"), ROOT / "prefect.yaml"]:
        for start in re.findall(r"worker start --pool (?:docker|kubernetes)[^`]*", file.read_text()):
            assert "--type " in start, f"{file.name}: {start}"


def test_documented_commands_in_compose_name_services_and_their_profiles():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    command = re.compile(r"docker compose --file deploy/compose\.yaml( --profile \w+)? exec ([\w-]+) git pull")
    named = command.findall((ROOT / "docs" / "prefect.md").read_text())
    assert {service for _, service in named} == {
        "worker",
        "worker-gpu",
        "control",
    }  # two clones: one is of both workers
    for profile, service in named:
        assert services[service].get("profiles", []) == profile.split()[1:]


def setup(tmp_path: Path, pools: dict[str, str], *arguments: str) -> tuple[int, str, list[str]]:
    """deploy/setup.sh beside a Prefect that has these pools: its status, what it says, and what it changes."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, kind in pools.items():
        (tmp_path / name).write_text(json.dumps({"type": kind}))
    prefect = f"""#!/bin/sh
shift
if [ "$2" = inspect ]; then cat "{tmp_path}/$3" 2>/dev/null; exit $?; fi
echo "$@" >> "{tmp_path}/log"
"""
    python = f'#!/bin/sh\ncase "$2" in *json*) exec "{sys.executable}" "$@";; esac\n'
    for name, text in {"prefect": prefect, "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "log").write_text("")
    done = subprocess.run(
        ["bash", str(DEPLOY / "setup.sh"), *arguments],
        env={"PATH": f"{programs}:{os.environ['PATH']}", "PREFECT_API_URL": "http://example.org/api"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr, (tmp_path / "log").read_text().splitlines()


POOLS = {"gpu": "process", "control": "process", "docker": "docker", "kubernetes": "kubernetes"}


def test_setup_makes_what_is_missing_and_leaves_the_rest(tmp_path):
    status, _, changes = setup(tmp_path, {"gpu": "process", "docker": "docker"})
    assert status == 0
    assert [line.split()[:3] for line in changes] == [
        ["work-pool", "create", "control"], ["work-pool", "create", "kubernetes"], ["deploy", "--all"]
    ]  # fmt: skip
    status, _, changes = setup(tmp_path, POOLS, "--templates")
    assert status == 0
    assert [line.split()[1:3] for line in changes[:-1]] == [["update", "docker"], ["update", "kubernetes"]]


def test_setup_refuses_a_pool_of_another_type(tmp_path):
    """A worker that was started before the pool, and told no type, has made it a pool of processes."""
    status, said, changes = setup(tmp_path, POOLS | {"kubernetes": "process"})
    assert (status, changes) == (1, [])
    assert said.splitlines()[-1].startswith("setup.sh: pool kubernetes is of type process, not kubernetes:")


def test_setup_knows_one_argument(tmp_path):
    status, said, changes = setup(tmp_path, {}, "--overwrite")
    assert (status, changes) == (2, [])
    assert "--templates is the only one" in said


@pytest.mark.parametrize("killed", ["never", "in the clone", "in the checkout"])
def test_the_worker_script_makes_its_clone_whole(tmp_path, killed):
    """Prefect's own program is another here: what it is called with, and where, is what counts."""
    source, clone, programs = tmp_path / "source", tmp_path / "clone", tmp_path / "bin"
    for folder in (source, clone, programs):
        folder.mkdir()
    (source / "file").write_text("content")
    who = ["-c", "user.name=A", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    (programs / "prefect").write_text('#!/bin/sh\necho "$@"\n')
    (programs / "prefect").chmod(0o755)
    if killed == "in the clone":
        (clone / ".part/.git/objects").mkdir(parents=True)
    if killed == "in the checkout":
        subprocess.run(["git", "clone", "-q", "--no-checkout", str(source), str(clone)], check=True)
        (clone / ".git/index.lock").touch()
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "AUTOLORA_REPOSITORY": str(source)}
    for _ in range(2):
        started = subprocess.run(
            ["bash", str(DEPLOY / "worker.sh"), "a-pool"],
            cwd=clone,
            env=environment | {"WORKER_NAME": "w"},
            capture_output=True,
            text=True,
        )
        assert started.stdout == "worker start --pool a-pool --type process --name w --limit 1\n", started.stderr
        assert (clone / "file").read_text() == "content"
        (clone / "mine").touch()
    assert sorted(path.name for path in clone.iterdir()) == [".git", "file", "mine"]
