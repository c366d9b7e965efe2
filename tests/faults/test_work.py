"""`.work` grows: a command shows it and prunes it, and removes nothing that is in use or that is not progress."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.common.runner import work_dir
from stages.dataset.store import Store
from stages.work.folders import found, prune
from tests.house.imports import ROOT
from tests.stages.dataset.pictures import fill
from tests.stages.dataset.test_store import listed

OLD = 40 * 24 * 3600


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three pieces of work: one of today, one forty days old, one as old whose lock a process holds."""
    monkeypatch.setenv("AUTOLORA_WORK", str(tmp_path))
    for stage in ("finetune", "evaluate", "merge"):
        folder = work_dir(stage, seed=0)
        (folder / "kept.pt").write_bytes(os.urandom(200_000))
        if stage != "finetune":
            age(folder)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/weights.pt").write_bytes(b"w")
    age(tmp_path / "downloads")
    return tmp_path


def age(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - OLD,) * 2)


def run(root, *arguments):
    environment = os.environ | {"AUTOLORA_WORK": str(root)}
    command = [sys.executable, "-m", "stages.work", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_what_lies_there_is_shown(root):
    lines = run(root).splitlines()
    assert [line.split()[0] for line in lines] == ["evaluate", "merge", "finetune", "downloads", "0.6"]
    assert "0.2 MB" in lines[0]
    assert "40 days ago" in lines[0]
    assert "0 days ago" in lines[2]
    assert len(found(root)) == 3


def test_only_what_is_old_and_not_in_use_is_removed(root):
    holder_of = next(work.path for work in found(root) if work.stage == "merge")
    code = "import sys, time; from pathlib import Path; from stages.common.runner import only_one\n"
    code += "with only_one(Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(holder_of)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        age(holder_of)
        said = run(root, "--prune", "30")
        holder.kill()
    assert "removed" in next(line for line in said.splitlines() if line.startswith("evaluate"))
    assert "a process is at it: left alone" in next(line for line in said.splitlines() if line.startswith("merge"))
    assert sorted(work.stage for work in found(root)) == ["finetune", "merge"]
    assert (root / "downloads/weights.pt").exists()


def test_work_of_the_last_hour_stays_whatever_is_asked(root):
    assert {said for _, said in prune(found(root), days=0)} == {"removed", "used within the hour: left alone"}
    assert [work.stage for work in found(root)] == ["finetune"]


def test_what_is_asked_for_again_was_used(root):
    folder = work_dir("merge", seed=0)
    assert next(work for work in found(root) if work.path == folder).days < 0.01


def test_nothing_but_progress_is_a_candidate(root):
    (root / "finetune/mine").mkdir()
    (root / "finetune/0123456789abcdef").symlink_to(root / "downloads")
    (root / "of somebody").mkdir()
    assert len(found(root)) == 3


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_decoded_images_may_be_read_by_whom_the_umask_lets(tmp_path, umask, mode):
    """Users of one shared folder: what one has decoded, another reads."""
    fill(tmp_path / "raw", images=2)
    (tmp_path / "store").mkdir()
    before = os.umask(umask)
    try:
        list(Store(tmp_path / "store", 24).decode(listed(tmp_path / "raw")))
    finally:
        os.umask(before)
    for name in ("pixels-*", "index.jsonl"):
        (file,) = (tmp_path / "store").glob(name)
        assert file.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become two users")
def test_two_users_of_one_folder(tmp_path):
    """The second reads what the first has decoded, and adds what is new (the folder is theirs together)."""
    fill(tmp_path / "raw", images=2)
    folder = tmp_path / "store"
    folder.mkdir()
    folder.chmod(0o777)
    for part in (tmp_path, *tmp_path.parents):
        if part.stat().st_uid == 0 and len(part.parts) > 2:
            part.chmod(part.stat().st_mode | 0o755)
    decoded = []
    before = os.umask(0)
    try:
        for user in (4001, 4002):
            os.seteuid(user)
            store = Store(folder, 24)
            rows = list(store.decode(listed(tmp_path / "raw")))
            assert store.pixels([row["sha256"] for row in rows]).shape == (len(rows), 3, 24, 24)
            decoded.append(store.decoded)
            os.seteuid(0)
            fill(tmp_path / "raw", images=1, first=10)
    finally:
        os.seteuid(0)
        os.umask(before)
    assert decoded == [4, 2]
