"""What a kill or a power failure leaves: half files are swept up, and what cannot be read is set aside, once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from autolora.common.files import replacing, replacing_folder, weights_sha256
from autolora.training.loop import finetune
from tests.method.small import QUICK, THREAT, images, network

DIES = """
import os, signal, sys
from pathlib import Path
from autolora.common import files

rename, moment = os.replace, int(sys.argv[2])
def dies(source, target, count=[0]):
    count[0] += 1
    if count[0] == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)

files.os.replace = dies
with files.replacing_folder(Path(sys.argv[1])) as part:
    (part / "new").write_text("new")
"""


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_at_either_rename_leaves_nothing_for_ever(root, tmp_path, moment):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("old")
    killed = subprocess.run([sys.executable, "-c", DIES, str(folder), str(moment)], cwd=root)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) > 1 or not folder.exists()

    def fails():
        with replacing_folder(folder):
            assert (folder / "old").exists()  # it came back before the new one is begun
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in folder.iterdir()] == ["old"]


def test_what_another_process_is_writing_stays(tmp_path):
    part = tmp_path / f".out.{os.getppid()}.part"
    part.mkdir()
    with replacing_folder(tmp_path / "out"):
        pass
    assert part.exists()


def test_files_and_folders_are_on_the_disk_before_their_name_is(tmp_path, monkeypatch):
    """The order in which the system is asked: content, rename, name."""
    asked = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (asked.append(name), real(*a)))
    with replacing(tmp_path / "x") as part:
        part.write_text("x")
    assert asked == ["fsync", "replace", "fsync"]
    asked.clear()
    with replacing_folder(tmp_path / "y") as part:
        (part / "x").write_text("x")
    assert asked == ["fsync", "fsync", "replace", "fsync"]


class Killed(RuntimeError):
    pass


def tune(folder, until=None, **changes):
    def cut(record):
        if record["epoch"] == until:
            raise Killed

    settings = QUICK | {"epochs": 4, **changes}
    return finetune(network(), images(48), images(12, 1), THREAT, checkpoints=folder, on_epoch=cut, **settings)


def emptied(content: bytes) -> bytes:
    return b""


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def rotten(content: bytes) -> bytes:
    """A bit in each kilobyte of the middle: the parts that say where everything lies are whole."""
    rotten = bytearray(content)
    for place in range(len(content) // 4, len(content) // 2, 1024):
        rotten[place] ^= 1
    return bytes(rotten)


@pytest.mark.parametrize(
    "passing",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ESTALE, "Stale file handle"),
        RuntimeError("unable to mmap 240001895 bytes from file <x.pt>: Cannot allocate memory (12)"),
        MemoryError(),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_stays_for_the_next_start(tmp_path, monkeypatch, passing):
    with pytest.raises(Killed):
        tune(tmp_path, until=3)
    there = {path.name for path in tmp_path.glob("*.pt*")}

    def refuse(*args, **named):
        raise passing

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", refuse)
        with pytest.raises(type(passing)):
            tune(tmp_path)
    assert {path.name for path in tmp_path.glob("*.pt*")} == there
    seen: list[int] = []
    finetune(
        network(), images(48), images(12, 1), THREAT, checkpoints=tmp_path,
        on_epoch=lambda record: seen.append(record["epoch"]), **QUICK | {"epochs": 4},
    )  # fmt: skip
    assert seen[0] == 4


@pytest.mark.parametrize("damage", [emptied, zeroed, cut_short, rotten])
@pytest.mark.parametrize("both", [False, True], ids=["the newest", "all"])
def test_an_unreadable_checkpoint_is_set_aside_and_the_run_ends_with_the_same_bits(tmp_path, capsys, damage, both):
    whole = tune(tmp_path / "whole")
    with pytest.raises(Killed):
        tune(tmp_path / "hurt", until=3)
    (file,) = (tmp_path / "hurt").glob("*.pt")
    for path in [file, *([file.with_name(f"{file.name}.before")] if both else [])]:
        path.write_bytes(damage(path.read_bytes()))
    seen: list[int] = []
    again = finetune(
        network(), images(48), images(12, 1), THREAT, checkpoints=tmp_path / "hurt",
        on_epoch=lambda record: seen.append(record["epoch"]), **QUICK | {"epochs": 4},
    )  # fmt: skip
    assert seen[0] == (1 if both else 3)
    assert weights_sha256(again.model.state_dict()) == weights_sha256(whole.model.state_dict())
    said = [line for line in capsys.readouterr().err.splitlines() if "set aside" in line]
    assert len(said) == 1 + both
