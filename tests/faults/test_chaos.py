"""The chaos benchmark counts what is lost or different, and a small part of it finds nothing."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import yaml

from autolora.common.files import read_json
from benchmarks import _project, chaos
from benchmarks._hurts import Hurt, Place
from benchmarks._project import STAGES, Ended, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """One stage with one output, in the workspace, in dvc.lock and in the cache."""
    project, content = Project(tmp_path / "project"), b"weights"
    md5 = hashlib.md5(content).hexdigest()
    project.folder.mkdir()
    (project.folder / "out").write_bytes(content)
    stage = {"outs": [{"path": "out", "md5": md5}]}
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"merge": {"outs": ["out"]}}}))
    (project.folder / "dvc.lock").write_text(yaml.safe_dump({"stages": {"merge": stage}}))
    project.cached(md5).parent.mkdir(parents=True)
    project.cached(md5).write_bytes(content)
    return project


def verdict(project: Project, code: int = 0) -> chaos.Fault:
    expected = {"out": hashlib.sha256(b"weights").hexdigest()}
    place = Place(project.folder.parent, project, expected, random.Random(0), True)
    return chaos.judged(place, project, 0.0, Hurt(Ended(1, code, "Traceback (most recent call last)"), versions=0))


def test_what_is_whole_has_survived(project):
    fault = verdict(project)
    assert (fault.survived, fault.different, fault.lost) == (True, 0, 0)


def test_a_changed_output_is_different(project):
    (project.folder / "out").write_bytes(b"weights!")
    fault = verdict(project)
    assert (fault.survived, fault.different, fault.lost) == (False, 1, 0)
    (project.folder / "out").unlink()
    assert verdict(project).different == 1


@pytest.mark.parametrize("content", [None, b"weightz"])
def test_a_cached_output_that_is_gone_or_wrong_is_lost(project, content):
    (file,) = (project.folder / ".dvc").rglob("cache/files/md5/*/*")
    file.unlink() if content is None else file.write_bytes(content)
    fault = verdict(project)
    assert (fault.survived, fault.different, fault.lost) == (False, 0, 1)


def test_a_run_that_does_not_end_well_has_not_survived(project):
    fault = verdict(project, code=1)
    assert (fault.survived, fault.tracebacks) == (False, 1)


def test_kills_hit_every_stage():
    assert set(chaos.plan(7)) == set(chaos.plan(30)) == set(STAGES)
    for kills in (1, 3, 7, 30, 65):
        assert sum(len(chain) for chain in chaos.chains(kills)) == kills
        assert all(len(chain) <= chaos.CHAIN for chain in chaos.chains(kills))


@pytest.mark.slow
@pytest.mark.parametrize("only", ["kills", "kills in deploy"])
def test_a_small_part_of_it(tmp_path_factory, monkeypatch, only):
    monkeypatch.setitem(_project.SMALL, "data", {"image_size": 8})
    monkeypatch.setitem(_project.SMALL, "evaluate", {"images": 10, "version": "fast"})
    folder = tmp_path_factory.getbasetemp() / "chaos"  # the undisturbed run is made once
    results = folder.with_name(f"{only}.json")
    chaos.main(["--small", "--kills", "2", "--only", only, "--folder", str(folder), "--results", str(results)])
    record = read_json(results)
    mine = [fault for fault in record["faults"] if fault["name"].startswith(only.rstrip("s")[:4])]
    assert mine
    assert not [fault for fault in mine if not fault["survived"]]
