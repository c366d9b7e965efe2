"""What a run is told by whoever reaches the Prefect server: names that are options, and paths that lead out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prefect.exceptions import ParameterTypeError

from pipelines.execution import parameters, scheduled
from pipelines.execution.parameters import ParameterError
from pipelines.rebuild import rebuild
from pipelines.sweep import params_of, sweep
from pipelines.sweeps.grid import Cell
from pipelines.workspace import params_file


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A clone with one link that leads out."""
    folder = tmp_path / "clone"
    (folder / "presets").mkdir(parents=True)
    (tmp_path / "secret.yaml").write_text("password: kept\n")
    (folder / "presets/linked.yaml").symlink_to(tmp_path / "secret.yaml")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "preset", ["/etc/passwd", "../secret.yaml", "presets/linked.yaml", "presets/../../secret.yaml", "a\0b"]
)
def test_a_preset_lies_in_the_repository(clone, preset):
    with pytest.raises(ParameterError, match=r"preset .* is not inside") as caught:
        params_file.use_preset(clone, preset)
    assert "root:" not in str(caught.value)
    assert "kept" not in str(caught.value)
    with pytest.raises(ParameterError):
        params_of(clone, Cell({}, preset, {}))
    assert not (clone / "params.yaml").exists()


@pytest.mark.parametrize("keep", ["/etc/cron.d", "../..", "sweeps/../../../outside"])
def test_results_are_kept_in_work(clone, keep):
    with pytest.raises(ParameterError, match=r"keep .* is not inside"):
        parameters.inside(clone / ".work", keep, "keep")
    assert parameters.inside(clone / ".work", "sweeps/a/b", "keep") == clone / ".work/sweeps/a/b"


def test_a_worker_works_in_its_own_clone(clone, tmp_path, monkeypatch):
    assert parameters.own_clone(tmp_path) == tmp_path  # by hand: anywhere
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "a run")
    assert parameters.own_clone(Path(".")) == clone
    with pytest.raises(ParameterError, match="is not the worker's clone"):
        parameters.own_clone(tmp_path)


@pytest.mark.parametrize("to", ["/etc/cron.d", "..", "service/../.."])
def test_deployments_go_where_the_worker_says(clone, to, monkeypatch, tmp_path):
    with pytest.raises(ParameterError, match=r"to .* is not inside"):
        parameters.service(to)
    assert parameters.service(None) == clone / "service"
    for named in ("service/a", "a"):
        assert parameters.service(named) == clone / "service/a"
    monkeypatch.setenv("AUTOLORA_SERVICE", str(tmp_path / "triton"))
    for named in (None, str(tmp_path / "triton"), "."):
        assert parameters.service(named) == tmp_path / "triton"
    assert parameters.service("service") == tmp_path / "triton/service"
    with pytest.raises(ParameterError):
        parameters.service(to)


HOSTILE = [
    (scheduled.promote, {"name": "m", "version": "--rollback"}),
    (scheduled.promote, {"name": "--history", "version": 1}),
    (scheduled.promote, {"name": "m", "version": 1, "to": "--force"}),
    (scheduled.promote, {"name": "m", "version": "1; reboot"}),
    (scheduled.deploy, {"model": "../m@champion"}),
    (scheduled.deploy, {"model": "m@--rollback"}),
    (scheduled.deploy, {"model": "--rollback"}),
    (rebuild, {"revision": "--upload-pack=touch /tmp/x"}),
    (rebuild, {"revision": "HEAD; reboot"}),
    (rebuild, {"gpus": "all"}),
    (sweep, {"name": "digits", "revision": "-x"}),
]
SOUND = [
    (scheduled.promote, {"name": "robust-digits", "version": "registered", "to": "challenger"}),
    (scheduled.promote, {"name": "robust-digits", "version": "3"}),
    (scheduled.deploy, {"model": "robust-digits@champion", "to": "service"}),
    (scheduled.deploy, {"model": "robust-digits"}),
    (rebuild, {"stages": ["merge"], "revision": "v1.0^{commit}", "overrides": {"seed": 1}}),
    (rebuild, {"revision": "feature/some-thing", "keep": "sweeps/a"}),
    (sweep, {"name": "digits", "pool": "gpu"}),
]


@pytest.mark.parametrize(("flow", "given"), HOSTILE)
def test_a_hostile_parameter_is_refused_before_the_run(flow, given):
    with pytest.raises(ParameterTypeError):
        flow.validate_parameters(given)


@pytest.mark.parametrize(("flow", "given"), SOUND)
def test_a_sound_parameter_is_taken(flow, given):
    flow.validate_parameters(given)


def test_what_is_no_option_stays_none(monkeypatch, clone):
    """The commands get names behind `--`."""
    commands = []
    monkeypatch.setattr(scheduled.commands, "run", lambda command, *rest: commands.append(command[3:]))
    monkeypatch.setattr(scheduled, "get_run_logger", lambda: type("", (), {"info": print}))
    scheduled.promote.fn("m", 3)
    scheduled.deploy.fn("m@champion")
    assert commands == [["--to", "champion", "--", "m", "3"], ["--to", str(clone / "service"), "--", "m@champion"]]
    assert os.getcwd() == str(clone)
