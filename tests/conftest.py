"""Shared fixtures: where the real test data lie, one thread, and the GPU marker."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autolora.common import code
from tests.warm_python import warm

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with two threads each would spin
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # so a shell starts its background jobs, and they what they start;
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a Prefect worker asked to end sends itself a SIGINT

ROOT = Path(__file__).resolve().parent.parent
# Half of the whole suite's time (`pytest --durations=60`), the longest first.
LONGEST = (
    "test_flows.py",
    "test_chaos.py",
    "test_documented_commands.py",
    "test_autoattack.py",
    "test_resume.py",
    "test_evaluate.py",
    "test_finetune.py",
    "test_real_servers.py",
    "test_loop.py",
    "test_help.py",
    "test_real_weights.py",
    "test_fuzz.py",
    "test_distributed.py",
    "test_experiments.py",
)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights for tests; they are not part of the repository."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the test data and weights in ../shared, which are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def python() -> Iterator[str]:
    """A Python that starts with torch, MLflow and others imported. Its path is short: a socket's may not be long."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, warm(Path(folder)) as path:
        yield path


@pytest.fixture
def mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which the code of autolora is another, as if one of its files had been edited."""
    copy = tmp_path / "library" / "autolora"
    shutil.copytree(code.LIBRARY, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "LIBRARY", copy)

    def edit() -> None:
        (copy / "threat.py").write_text("MENDED = True\n")

    return edit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: with two workers none of them must be what the other one waits for at the end."""
    import torch

    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an accelerator"))
