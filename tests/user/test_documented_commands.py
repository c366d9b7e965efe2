"""The commands of the README, as a person types them, from top to bottom.

`uv run` itself is left out: it would resolve and fetch the environment. What it starts stands in PATH here.
"""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.house.pages import commands, without_settings
from tests.user.clone import Clone

ONE_WORKER = {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # not four, and no jobs' runners
MLFLOW = "MLFLOW_DISABLE_TELEMETRY=true uv run mlflow server --backend-store-uri sqlite:///mlflow.db"
# README's, in the order in which they are tried.
RUN = [
    "uv run python -m stages.estimate",
    "uv run dvc repro",
    "uv run dvc metrics show",
    "uv run dvc plots show",
    "python3 -m webbrowser reports/card.html",
    MLFLOW,
    "uv run python -m autolora.export --show models/export/model.onnx",
    "git add dvc.lock",
    'git commit -m "the first result"',
    "uv run dvc exp run --temp -S finetune.method=vanilla",
    "uv run dvc exp show --drop '.*' --keep '^(Experiment|Created|clean|robust)$'",
    "uv run dvc exp show --drop '.*' --keep '^(Experiment|clean|robust|threat.eps|finetune.method|merge.alpha|seed)$'",
    "uv run dvc repro register",
    "uv run python -m pipelines.rebuild",
    "uv run python -m pipelines.sweep digits --list",
    "uv run python -m pipelines.promote robust-digits 1 --to champion",
    "uv run python -m pipelines.deploy robust-digits@champion --to service/",
    "uv run python -m stages.work",
    "uv run dvc gc --workspace",
    "rm -r .work",
    "cp presets/folder.yaml params.yaml",
]
NOT_RUN = {
    "uv run autolora attack model.onnx --data images/ --eps 8/255": "tests/user/test_attack_page.py runs such commands",
    "pip install uv": "needs a package index",
    "uv run pytest -n auto": "this very run",
    "python3 -m venv ~/.uv": "needs a package index",
    "~/.uv/bin/pip install uv": "needs a package index",
    "export PATH=~/.uv/bin:$PATH": "of the line before it",
    "uv run dvc config --local cache.dir CLONE/.dvc/cache": "in a worktree beside the clone; CLONE is its place",
    "uv run dvc exp apply NAME": "NAME is drawn; tests/user has a test of its own for experiments",
    "uv run python -m benchmarks.agreement_with_original run": "hours; its options are looked at in test_help.py",
    "uv run python -m benchmarks.training_speed": "minutes; its options are looked at in test_help.py",
    "uv run python -m benchmarks.small_sets PATH": "images that are not in the repository",
    "uv run python -m benchmarks.report --collect": "writes our own pages; test_results.py writes others",
    "uv run python -m pipelines.sweep small-table": "hours, and images that are not in the repository",
    "uv run python -m pipelines.rebuild --preset presets/trashnet.yaml": "half an hour, and images that are not here",
    "uv run python -m tools.pretrain": "half an hour; its options are looked at in test_help.py",
}


def is_command(text: str) -> bool:
    words = without_settings(text)
    programs = ("uv", "git", "python3", "pip", "rm", "cp", "export", "~/.uv/bin/pip")
    return len(words) > 1 and text != "pip install" and words[0] in programs


def test_every_command_of_the_readme_is_run_or_has_a_reason():
    named = [command for command in commands(Path("README.md")) if is_command(command)]
    assert set(named) <= set(RUN) | set(NOT_RUN)
    assert set(RUN) | set(NOT_RUN) <= set(named), "the README does not name these any longer"


@pytest.fixture(scope="module")
def small(tmp_path_factory, root, python) -> Clone:
    """A clone whose run takes half a minute: small images, few of them attacked, one epoch, no search, no gate."""
    clone = Clone(tmp_path_factory.mktemp("readme"), root, python)
    for old, new in (
        ("image_size: 16 ", "image_size: 8 "),
        ("epochs: 20 ", "epochs: 1 "),
        ("alpha: auto ", "alpha: 0 "),
        ("images: 100 ", "images: 10 "),
        ("check_images: 30 ", "check_images: 1 "),
        ("    clean: 0.8", "    clean: 0.0"),
        ("    robust: 0.3", "    robust: 0.0"),
        ("    lower: 0.2", "    lower: 0.0"),
        ("    images: 100\n", "    images: 1\n"),
    ):
        clone.set_params(old, new)
    clone.git("config", "user.name", "A")
    clone.git("config", "user.email", "a@b")
    clone.git("commit", "-qam", "small")
    return clone


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readme_from_top_to_bottom(small):
    said = {}
    for command in RUN:
        if command == MLFLOW:
            assert answers(small, command)
            continue
        typed = "echo y | " if command == "uv run dvc gc --workspace" else ""  # it asks whether one is sure
        ended = small.run("bash", "-c", typed + command.replace("uv run ", ""), timeout=900, BROWSER="true")
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-3000:]}"
        said[command] = ended.stdout
    assert "robust" in said["uv run dvc metrics show"]
    assert "threat" in said["uv run python -m autolora.export --show models/export/model.onnx"]
    assert (small.folder / "service" / "robust-digits" / "1" / "model.onnx").exists()
    assert not (small.folder / ".work").exists()


def answers(clone: Clone, command: str) -> bool:
    """A server that is started as documented answers at the address that docs/registry.md names."""
    server = subprocess.Popen(
        ["bash", "-c", "exec env " + command.replace("uv run ", "")],
        cwd=clone.folder, env=clone.environment(**ONE_WORKER), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(240):
            time.sleep(0.5)
            try:
                with urllib.request.urlopen("http://localhost:5000/health", timeout=5) as reply:
                    return bool(reply.status == 200)
            except OSError:
                continue
        return False
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(300)
