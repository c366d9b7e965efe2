"""A deployment that dies at any of its writes, or meets bad versions only: what is served is whole, or nothing is.

The dying process is a fork of this one: it ends, without a word, at its k-th write into the repository.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import pytest

from autolora.common.files import file_sha256, read_json, write_json
from pipelines import deploy
from pipelines.registry import triton_repository as repository
from tests.registry.deployments import Serving, folders, run, served

WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.copyfile")
FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def ended_at(number, folder, work, by):
    """The exit code of a fork in which `by()` is called right before write `number` into the folder."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in WRITES and str(folder) in str(arguments[0]) and (event != "open" or arguments[2] & FLAGS):
            count += 1
            if count == number:
                by()

    sys.addaudithook(hook)
    code = 70
    try:
        code = work()
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def killed_at(number, folder, work):
    return ended_at(number, folder, work, lambda: os._exit(9)) == 9


def named(service):
    return repository.pointed_at(service / "synthetic")


def state(service):
    return repository.state(service / "synthetic")


def whole(service, number, registry):
    file = service / f"synthetic/{number}/model.onnx"
    return file_sha256(file) == file_sha256(registry / f"{number}/models/export/model.onnx")


def consistent(service, number):
    record = state(service)
    assert (record["current"], record["trial"], named(service)) == (number, None, number)
    assert not list((service / "synthetic").glob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("before", [None, 1])
def test_killed_at_every_write_of_a_good_deployment(registry, champion, service, tmp_path, before):
    """At once something whole is named, or nothing; the next look brings the version, and the three agree."""
    if before:
        champion(before)
        assert run(service) == 0
    else:
        service.mkdir()
    champion(2)
    as_it_was = shutil.copytree(service, tmp_path / "as it was")
    number = 1
    while killed_at(number, service, lambda: run(service)):
        assert named(service) in (before, 2)
        if named(service):
            assert whole(service, named(service), registry)
        assert run(service) == 0
        consistent(service, 2)
        assert whole(service, 2, registry)
        shutil.rmtree(service)
        shutil.copytree(as_it_was, service)
        number += 1
    assert number > 12
    consistent(service, 2)


@pytest.mark.slow
def test_killed_at_every_write_while_a_bad_version_is_taken_back(
    registry, champion, service, url, tmp_path, monkeypatch
):
    champion(1)
    assert run(service, "--server", url) == 0
    champion(2)
    monkeypatch.setattr(Serving, "offset", 0.5)
    as_it_was = shutil.copytree(service, tmp_path / "as it was")
    number = 1
    while killed_at(number, service, lambda: run(service, "--server", url)):
        assert named(service) in (1, 2)
        assert whole(service, named(service), registry)
        assert run(service, "--server", url) == 1
        consistent(service, 1)
        assert "2" in state(service)["refused"]
        shutil.rmtree(service)
        shutil.copytree(as_it_was, service)
        number += 1
    assert number > 15


@pytest.mark.slow
def test_killed_at_every_write_of_a_way_back(registry, champion, service, tmp_path):
    for number in (1, 2):
        champion(number)
        assert run(service) == 0
    as_it_was = shutil.copytree(service, tmp_path / "as it was")
    back = ["synthetic", "--to", str(service), "--rollback"]
    number = 1
    while killed_at(number, service, lambda: deploy.main(back)):
        assert whole(service, named(service), registry)
        if state(service)["trial"] or state(service)["current"] == 1:  # it had begun: the next look finishes it
            assert run(service) == 1  # the alias names 2, which was taken back by hand
            consistent(service, 1)
        shutil.rmtree(service)
        shutil.copytree(as_it_was, service)
        number += 1
    assert number > 5
    consistent(service, 1)


def test_two_bad_versions_in_a_row_leave_nothing_served(registry, champion, service, url, monkeypatch, capsys):
    monkeypatch.setattr(Serving, "offset", 0.5)
    for number in (1, 2):
        champion(number)
        assert run(service, "--server", url) == 1
        assert "nothing is served" in capsys.readouterr().err
        assert "versions: [  ]" in (service / "synthetic/config.pbtxt").read_text()
        consistent(service, None)
        assert folders(service) == []
    monkeypatch.setattr(Serving, "offset", 0.0)
    assert run(service, "--server", url, "--retry") == 0
    assert served(service) == 2


def test_asked_to_end_it_takes_back_what_is_on_trial(registry, champion, service):
    champion(1)
    run(service)
    champion(2)
    config = service / "synthetic/.config.pbtxt."
    code = ended_at(1, config, lambda: run(service), lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert code == 143
    consistent(service, 1)
    assert folders(service) == [1]


def test_a_configuration_that_names_another_version_is_mended(registry, champion, service, capsys):
    for number in (1, 2):
        champion(number)
        run(service)
    shutil.rmtree(service / "synthetic/1")
    file = service / "synthetic/config.pbtxt"
    file.write_text(file.read_text().replace("versions: [ 2 ]", "versions: [ 1 ]"))
    capsys.readouterr()
    assert run(service) == 0
    assert "configuration and record did not agree: version 2 is served" in capsys.readouterr().err
    consistent(service, 2)


def test_a_served_file_that_was_damaged_is_fetched_again(registry, champion, service, capsys):
    champion(1)
    run(service)
    (service / "synthetic/1/model.onnx").write_bytes(b"")
    assert run(service) == 0
    assert "nothing is served" in capsys.readouterr().err  # in between
    consistent(service, 1)
    assert whole(service, 1, registry)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[]", b'{"current": 1, "refused": 3}', b"\xff"])
def test_a_record_that_cannot_be_read_is_set_aside(registry, champion, service, capsys, content):
    champion(1)
    run(service)
    (service / "synthetic/deployed.json").write_bytes(content)
    assert run(service) == 0
    assert "deployed.json could not be read, and is deployed.json.unreadable now" in capsys.readouterr().err
    consistent(service, 1)
    assert (service / "synthetic/deployed.json.unreadable").read_bytes() == content


def test_what_no_decision_explains_is_not_served(registry, client, champion, service, capsys):
    client.set_registered_model_alias("synthetic", "champion", "1")
    assert run(service) == 1
    assert "no decision in the log brought synthetic version 1 to champion" in capsys.readouterr().err
    assert run(service, "--unlogged") == 0
    assert served(service) == 1
    champion(2)
    client.set_registered_model_alias("synthetic", "champion", "3")  # moved by hand, after a decision on 2
    assert run(service) == 1
    assert served(service) == 1


def test_a_registry_writer_cannot_swap_the_champion(registry, client, champion, service, capsys):
    """File, canaries and tags together are those of version 3: all that is checked against each other agrees."""
    champion(2)
    tags = client.get_model_version("synthetic", "3").tags
    for key in ("content_key", "onnx_sha256", "canaries_sha256", "weights_sha256"):
        client.set_model_version_tag("synthetic", "2", key, tags[key])
    assert run(service) == 1
    assert "content_key, onnx_sha256, canaries_sha256 changed after it was promoted: refused" in capsys.readouterr().err
    assert folders(service) == []


@pytest.mark.parametrize("name", ["../outside", "a/b", "", ".", "..", "-x"])
def test_a_name_is_no_way_out_of_the_repository(tmp_path, name):
    with pytest.raises(deploy.StageError, match="is no name of a model"):
        deploy.deploy(name, "champion", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_record_is_plain_json(registry, champion, service):
    champion(1)
    run(service)
    assert read_json(service / "synthetic/deployed.json") == json.loads(json.dumps(state(service)))
    write_json(service / "synthetic/deployed.json", state(service))
    assert run(service) == 0
