"""Files of weights that were made to hurt: memory, time, code. Each is one readable error, and little memory."""

from __future__ import annotations

import pickle
import resource
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autolora.backbones.checkpoints import read_checkpoint
from autolora.backbones.classifier import Spec, as_classifier, build, load_classifier, save_classifier
from benchmarks.zoo import SmallCNN

LIMIT = 3 << 30  # bytes of address space beyond what is in use


@pytest.fixture(autouse=True)
def _little_memory():
    """A gigabyte more than now, and an allocation fails."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def hollow(path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(2_000_000_000)}, path)


def circle(path: Path) -> None:
    tree: dict = {f"k{i}": None for i in range(300)}
    tree |= dict.fromkeys(tree, tree)
    torch.save(tree, path)


def many_ways(path: Path) -> None:
    tree: dict = {"a": 1}
    for _ in range(4):
        tree = {f"k{i}": tree for i in range(100)}
    torch.save(tree, path)


def bomb(path: Path) -> None:
    """A pickle in a zip that deflates from 4 GB of zeros, as far as anybody reads it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, 2))
        with archive.open("x/data/0", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))


def deep(path: Path) -> None:
    """A module whose child is itself, of a class that is not here."""
    module = torch.nn.Sequential()
    module.add_module("again", module)
    torch.save(module, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (hollow, "larger than the whole file"),
        (circle, "no tensors by name"),
        (many_ways, "objects lie within one another"),
        (bomb, "is compressed, which torch.save never does"),
        (deep, "no tensors by name"),
    ],
)
def test_a_file_that_asks_for_memory_or_time(tmp_path: Path, make: Callable[[Path], None], words: str):
    make(tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 200_000
    with pytest.raises(ValueError, match=words):
        read_checkpoint(tmp_path / "x.pt")


# --- code that a file names -------------------------------------------------------------------------------------------

MODULE = "import pathlib\npathlib.Path({mark!r}).touch()\n"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A module that could be imported, and leaves a mark where it was."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "trap.py").write_text(MODULE.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    return tmp_path / "mark"


def test_a_classifier_names_a_module_that_is_not_imported(tmp_path, elsewhere):
    model = build(Spec("resnet10t", 2, 32, options={"channels": [4, 4, 4, 4], "stem_width": 4}))
    model.spec = Spec("trap:Net", 2, 32)
    save_classifier(model, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="neither imported nor in this folder"):
        load_classifier(tmp_path / "m.safetensors")
    assert not elsewhere.exists()
    assert "trap" not in sys.modules


def test_the_user_s_own_module_is_imported(tmp_path, monkeypatch):
    """One that is imported already, and one that lies in the folder of the work."""
    save_classifier(as_classifier(SmallCNN(), 3, 28, channels=1), tmp_path / "m.safetensors")
    assert load_classifier(tmp_path / "m.safetensors").spec.classes == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "of_users.py").write_text("from benchmarks.zoo import SmallCNN as Net\n")
    model = as_classifier(SmallCNN(), 3, 28, channels=1)
    object.__setattr__(
        model, "spec", Spec("of_users:Net", **{k: v for k, v in vars(model.spec).items() if k != "arch"})
    )
    save_classifier(model, tmp_path / "own.safetensors")
    assert type(load_classifier(tmp_path / "own.safetensors").body).__name__ == "SmallCNN"
