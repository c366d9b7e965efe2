"""What the alias names is served, whole and verified; what does not answer as recorded is taken back."""

from __future__ import annotations

import errno
import re
import tempfile

import numpy as np
import pytest
from mlflow import MlflowException

from autolora.common.files import file_sha256
from pipelines import deploy
from pipelines.deploy import main, watch
from pipelines.registry import triton_repository as repository
from pipelines.registry import triton_server
from pipelines.registry.triton_server import Silent, ask
from stages import register as registering
from stages.evidence.canaries import canaries
from tests.registry.deployments import Serving, folders, run, served


def test_the_alias_is_followed_and_the_last_k_stay(registry, champion, service, capsys):
    for number in (1, 2, 3):
        champion(number)
        assert run(service, "--keep", "2") == 0
        file = service / f"synthetic/{number}/model.onnx"
        assert file_sha256(file) == file_sha256(registry / f"{number}/models/export/model.onnx")
    assert served(service) == 3
    assert folders(service) == [2, 3]
    assert run(service) == 0
    assert "served already" in capsys.readouterr().out
    text = (service / "synthetic/config.pbtxt").read_text()
    assert 'name: "image", data_type: TYPE_FP32, dims: [ 3, 8, 8 ]' in text

    assert main(["synthetic", "--to", str(service), "--rollback"]) == 0
    assert served(service) == 2
    assert run(service) == 1  # the alias still names 3, which was taken back by hand
    assert "refused here before" in capsys.readouterr().err
    assert run(service, "--retry") == 0
    assert served(service) == 3


@pytest.mark.parametrize(
    "more", [["--watch", "30"], ["--server", "http://localhost:8000"], ["--retry"], ["--gpu"], ["--unlogged"]]
)
def test_a_rollback_refuses_what_it_would_pass_over(more, tmp_path, capsys):
    """With --watch it deployed what the alias names."""
    with pytest.raises(SystemExit, match="2"):
        main(["synthetic", "--to", str(tmp_path / "service"), "--rollback", *more])
    assert f"it takes no {more[0]}" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "service").exists()


def test_a_file_that_answers_otherwise_is_not_served(registered, champion, service, monkeypatch, capsys):
    registered("a")

    def shifted(evidence):
        found = canaries(evidence)
        return found | {"logits": found["logits"] + 1}

    monkeypatch.setattr(registering, "canaries", shifted)
    registered("b", seed=1)
    champion(1)
    assert run(service) == 0
    champion(2)
    assert run(service) == 1
    assert "does not answer its canaries as recorded: logits differ by up to 1" in capsys.readouterr().err
    assert served(service) == 1
    assert folders(service) == [1]


def test_a_file_damaged_on_its_way_is_rolled_back(registry, champion, service, monkeypatch, capsys):
    champion(1)
    run(service)
    champion(2)
    write = repository.write_version

    def damaged(model, number, path):
        other = service / "synthetic/1/model.onnx"  # a disk that gives back another file
        return write(model, number, other)

    monkeypatch.setattr(repository, "write_version", damaged)
    assert run(service) == 1
    assert "version 1 is served" in capsys.readouterr().err
    assert served(service) == 1
    events = [(e["version"], e["what"]) for e in repository.state(service / "synthetic")["events"]]
    assert events == [(1, "deployed"), (2, "taken back")]


def test_a_deployment_that_dies_leaves_the_version_before(registry, champion, service, monkeypatch):
    champion(1)
    run(service)
    champion(2)

    def dies(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repository, "flushed", dies)
        assert run(service) == 0  # interrupted by hand
    assert served(service) == 1
    assert folders(service) == [1]
    assert run(service) == 0
    assert served(service) == 2
    assert not list((service / "synthetic").glob(".*.part"))


@pytest.mark.parametrize(
    ("file", "message"), [("model.onnx", "model.onnx was changed"), ("canaries.npz", "canaries.npz was changed")]
)
def test_what_was_tampered_with_is_not_served(registry, champion, service, capsys, file, message):
    champion(1)
    for path in registry.glob(f"mlruns/**/{file}"):
        path.write_bytes(path.read_bytes() + b"\0")
    assert run(service) == 1
    assert message in capsys.readouterr().err
    assert folders(service) == []


def test_a_file_that_says_another_threat_than_the_registry_is_refused(registry, champion, client, service, capsys):
    champion(1)
    client.set_model_version_tag("synthetic", "1", "threat", "linf:8/255")
    assert run(service) == 1
    assert "says threat = linf:16/255, the registry says linf:8/255" in capsys.readouterr().err


def test_the_watch_follows_and_outlives_a_bad_moment(registry, champion, service, capsys):
    champion(1)
    moves = iter([lambda: None, lambda: champion(2), lambda: champion(2)])

    def look():
        next(moves)()
        return deploy.deploy("synthetic", "champion", service)

    watch(look, seconds=0, rounds=3)
    assert served(service) == 2
    out = capsys.readouterr().out
    assert out.count("is served from") == 2

    def away():
        raise deploy.StageError("the MLflow server does not answer")

    watch(away, seconds=0, rounds=3)
    assert capsys.readouterr().out.count("does not answer") == 1  # told once

    def full():
        with tempfile.TemporaryDirectory() as folder:
            raise OSError(errno.ENOSPC, "No space left on device", f"{folder}/model.onnx")

    watch(full, seconds=0, rounds=3)
    assert capsys.readouterr().out.count("No space left") == 1


def test_what_mlflow_refuses_reads_well(registry, champion, service, monkeypatch, capsys):
    champion(1)

    def denied(*arguments):
        raise MlflowException("permission denied\nand a long story")

    monkeypatch.setattr(deploy, "alias_version", denied)
    assert run(service) == 1
    assert re.fullmatch(r"deploy: the MLflow server sqlite:.* refuses: permission denied\n", capsys.readouterr().err)


def test_an_alias_that_is_not_there_is_named(registry, service, capsys):
    assert run(service) == 1
    assert "has no synthetic@champion: promote a version first" in capsys.readouterr().err


def test_a_server_that_answers_otherwise_gets_the_version_before(registry, champion, service, url, monkeypatch, capsys):
    champion(1)
    assert run(service, "--server", url) == 0
    champion(2)
    monkeypatch.setattr(Serving, "offset", 0.5)
    assert run(service, "--server", url) == 1
    assert "logits differ by up to 0.5" in capsys.readouterr().err
    assert served(service) == 1
    assert "2" in repository.state(service / "synthetic")["refused"]


def test_a_server_that_is_silent_condemns_no_version(registry, champion, service, url, monkeypatch, capsys):
    champion(1)
    monkeypatch.setattr(Serving, "silent", True)
    assert run(service, "--server", url) == 1
    assert "nothing is served" in capsys.readouterr().err
    monkeypatch.setattr(Serving, "silent", False)
    assert run(service, "--server", url) == 0
    champion(2)
    monkeypatch.setattr(Serving, "silent", True)
    assert run(service, "--server", url) == 1
    assert "version 2 cannot be tried: http://127.0.0.1" in capsys.readouterr().err
    assert (served(service), folders(service)) == (1, [1])
    monkeypatch.setattr(Serving, "silent", False)
    assert run(service, "--server", url) == 0
    assert (served(service), folders(service)) == (2, [1, 2])
    with pytest.raises(Silent, match="is not ready after 0 s"):
        ask("http://127.0.0.1:9", "synthetic", 1, {}, seconds=0)


def test_a_watch_beside_a_server_that_stays_dead_leaves_the_served_version_and_its_record_alone(
    registry, champion, service, url, capsys
):
    """Nobody listens on port 9: what Triton reads must not be changed, and changed back, at every look."""
    champion(1)
    assert run(service, "--server", url) == 0
    champion(2)
    before = {file: file.stat().st_mtime_ns for file in (service / "synthetic").rglob("*.*")}
    watch(lambda: deploy.deploy("synthetic", "champion", service, deploy.How(server="http://127.0.0.1:9")), 0, 3)
    assert {file: file.stat().st_mtime_ns for file in (service / "synthetic").rglob("*.*")} == before
    assert capsys.readouterr().out.count("version 2 cannot be tried") == 1


@pytest.mark.parametrize(("code", "refused"), [(429, []), (403, []), (400, ["2"])])
def test_a_limiter_or_a_proxy_that_refuses_says_nothing_of_the_version(
    registry, champion, service, url, monkeypatch, code, refused
):
    """Not in the record as a version that answers wrongly: that one is not tried again."""
    champion(1)
    assert run(service, "--server", url) == 0
    champion(2)
    monkeypatch.setattr(Serving, "refuses", code)
    assert run(service, "--server", url) == 1
    assert list(repository.state(service / "synthetic")["refused"]) == refused
    monkeypatch.setattr(Serving, "refuses", 0)
    assert run(service, "--server", url) == (1 if refused else 0)


def test_a_watch_beside_a_server_that_loads_nothing_counts_what_it_did_again(
    registry, champion, service, url, monkeypatch
):
    """It lives, and answers no canary: each look tries the version and takes it back, in one entry with a count."""
    how = deploy.How(server=url)
    champion(1)
    deploy.deploy("synthetic", "champion", service, how)
    champion(2)
    monkeypatch.setattr(Serving, "silent", True)
    watch(lambda: deploy.deploy("synthetic", "champion", service, how), 0, 3)
    events = [(e["version"], e["what"], e.get("times", 1)) for e in repository.state(service / "synthetic")["events"]]
    assert events == [(1, "deployed", 1), (2, "taken back", 3)]
    monkeypatch.setattr(Serving, "silent", False)
    deploy.deploy("synthetic", "champion", service, how)
    assert deploy.rollback("synthetic", service) == "synthetic version 1 is served again, instead of 2"


def test_a_configuration_that_is_gone_is_written_again(registry, champion, service):
    """Without one a server guesses, and takes the newest folder."""
    champion(1)
    assert run(service) == 0
    champion(2)
    assert run(service) == 0
    (service / "synthetic/config.pbtxt").unlink()
    assert run(service) == 0
    assert served(service) == 2


def test_a_name_with_a_blank_is_asked_for_by_its_address(monkeypatch):
    asked = []
    monkeypatch.setattr(triton_server, "_wait_ready", lambda url, seconds: asked.append(url))
    monkeypatch.setattr(triton_server, "_answers", lambda base, x: x)
    triton_server.ask("http://here", "robust digits", 1, {"x": np.zeros((1, 3)), "logits": np.zeros((1, 3))})
    assert asked == ["http://here/v2/models/robust%20digits/versions/1/ready"]
