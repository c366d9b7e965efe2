"""What replaces a file or a folder leaves the old one as it was until the new one is whole."""

from __future__ import annotations

import os

import pytest
import torch

from autolora.common import files
from autolora.common.files import replacing, replacing_folder


@pytest.fixture
def old(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


def test_a_folder_is_replaced_as_a_whole(old, tmp_path):
    with replacing_folder(old) as part:
        (part / "new").write_text("new")
        assert (old / "old").exists()
    assert [file.name for file in old.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [old]


def test_a_folder_that_fails_half_way_leaves_the_old_one(old, tmp_path):
    def dies():
        with replacing_folder(old) as part:
            (part / "new").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dies()
    assert (old / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(old, tmp_path, monkeypatch):
    rename = os.replace

    def fails(source, target):
        if source.suffix == ".part":
            raise OSError("no")
        rename(source, target)

    def replace():
        with replacing_folder(old) as part:
            (part / "new").write_text("new")

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(OSError, match="no"):
        replace()
    assert (old / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_others_may_read_what_safetensors_writes(tmp_path):
    """It writes for the owner alone; who serves the file is often somebody else."""
    from safetensors.torch import save_file

    path, plain = tmp_path / "x.safetensors", tmp_path / "plain"
    plain.touch()
    with replacing(path) as part:
        save_file({"a": torch.zeros(1)}, part)
    assert path.stat().st_mode == plain.stat().st_mode
