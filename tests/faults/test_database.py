"""The registry's own file: there whole, or not at all."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from stages.tracking.client import _put, connect, database_file, part_of, remove_what_a_kill_left

CONNECT = "from stages.tracking.client import connect; connect()"


@pytest.mark.slow
def test_a_kill_while_mlflow_makes_its_tables_leaves_nothing_that_cannot_be_opened(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{path}"}
    process = subprocess.Popen([sys.executable, "-c", CONNECT], env=environment)
    part, deadline = part_of(path, process.pid), time.monotonic() + 120
    while tables(part) < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert part.exists(), "killed too late"
    assert not path.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    mlflow = connect()
    mlflow.MlflowClient().create_experiment("goes on")
    assert tables(path) > 10
    assert [found.name for found in tmp_path.iterdir()] == ["mlflow.db"]


def test_the_journal_of_a_killed_one_goes_too(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    path = tmp_path / "mlflow.db"
    part = part_of(path, dead.pid)
    for left in (part, part.with_name(f"{part.name}-journal"), part_of(path, os.getpid())):
        left.write_text("")
    remove_what_a_kill_left(path)
    assert list(tmp_path.iterdir()) == [part_of(path, os.getpid())]


def test_an_address_may_say_how_long_to_wait(tmp_path, monkeypatch):
    """The usual remedy for a database that is locked."""
    path = tmp_path / "mlflow.db"
    assert database_file(f"sqlite:///{path}?timeout=60") == path
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}?timeout=60")
    connect()
    assert tables(path) > 10
    assert [found.name for found in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    part, path = tmp_path / "part", tmp_path / "mlflow.db"
    part.write_text("mine")
    _put(part, path)
    assert path.read_text() == "mine"
    part.write_text("late")
    _put(part, path)
    assert path.read_text() == "mine"


def tables(path):
    if not path.exists():
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        try:
            return database.execute("select count(*) from sqlite_master where type = 'table'").fetchone()[0]
        except sqlite3.OperationalError:  # locked for a moment
            return 0
