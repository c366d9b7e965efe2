"""Where a key is configured, only what it has signed is served, whatever the registry and its log say."""

from __future__ import annotations

import subprocess

import pytest

from pipelines import deploy, promote
from pipelines.registry import decision_log as history
from tests.registry.deployments import run, served

pytest.importorskip("model_signing", reason="needs model-signing (uv sync --group signing)")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs, made as the documentation says."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        private, public = str(folder / f"{name}.pem"), str(folder / f"{name}.pub")
        make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]
        subprocess.run(make, check=True)
        subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return folder


def test_what_was_signed_is_served_and_nothing_else(registry, client, keys, service, capsys):
    ours = ["--verify", str(keys / "ours.pub")]
    assert promote.main(["synthetic", "1", "--sign", str(keys / "ours.pem")]) == 0
    assert run(service, *ours) == 0
    assert served(service) == 1
    assert promote.main(["synthetic", "2"]) == 0
    assert run(service, *ours) == 1
    assert "synthetic version 2 is not signed, and" in capsys.readouterr().err
    assert promote.main(["synthetic", "3", "--force", "--why", "test", "--sign", str(keys / "theirs.pem")]) == 0
    assert run(service, *ours) == 1
    assert "synthetic version 3 is not signed by" in capsys.readouterr().err
    assert served(service) == 1


def test_what_is_rolled_back_to_can_be_signed_with_it(registry, client, keys, service):
    """Champions that reigned before there was a key: going back to one must not leave the servers with nothing."""
    assert promote.main(["synthetic", "1"]) == 0
    assert promote.main(["synthetic", "2", "--sign", str(keys / "ours.pem")]) == 0
    assert promote.main(["synthetic", "--rollback", "--sign", str(keys / "ours.pem")]) == 0
    assert run(service, "--verify", str(keys / "ours.pub")) == 0
    assert served(service) == 1


def test_a_registry_writer_who_forges_the_log_too_is_refused(registry, client, keys, service, capsys):
    """All of version 3 under the name of version 2, log included: the signature is of other files."""
    assert promote.main(["synthetic", "2", "--sign", str(keys / "ours.pem")]) == 0
    theirs = client.get_model_version("synthetic", "3")
    (signature,) = (registry / "mlruns").rglob("model.sig")
    forged = signature.parent.parent.parent / theirs.run_id / "artifacts" / "model.sig"
    forged.write_bytes(signature.read_bytes())
    entry = {
        "model": "synthetic",
        "alias": "champion",
        "version": 3,
        "previous": 2,
        "decision": "promoted",
        "why": None,
    }
    history.append(client, entry | {"why": None} | history.contents(theirs))
    client.set_registered_model_alias("synthetic", "champion", "3")
    assert run(service, "--verify", str(keys / "ours.pub")) == 1
    assert "synthetic version 3 is not signed by" in capsys.readouterr().err
    assert not (service / "synthetic/config.pbtxt").exists()


def test_a_key_of_the_machine_cannot_be_left_out(registry, keys, service, monkeypatch, capsys):
    monkeypatch.setenv("AUTOLORA_VERIFY_KEY", str(keys / "ours.pub"))
    assert promote.main(["synthetic", "1"]) == 0
    assert run(service) == 1
    assert "is not signed" in capsys.readouterr().err


def test_a_champion_of_before_the_keys_is_signed_where_it_stands(registry, client, keys, service, capsys):
    """As the refusal says; what reigns without the log is not vouched for."""
    ours = ["--verify", str(keys / "ours.pub")]
    assert promote.main(["synthetic", "1"]) == 0
    assert run(service, *ours) == 1
    assert "`promote --sign KEY` signs it" in capsys.readouterr().err
    decisions = history.entries(client, "synthetic")
    assert promote.main(["synthetic", "1", "--sign", str(keys / "ours.pem")]) == 0
    assert "is champion already, and signed now with" in capsys.readouterr().out
    assert run(service, *ours) == 0
    assert served(service) == 1
    assert history.entries(client, "synthetic") == decisions
    client.set_registered_model_alias("synthetic", "champion", "2")
    assert promote.main(["synthetic", "2", "--sign", str(keys / "ours.pem")]) == 1
    assert "version 2 is champion already" in capsys.readouterr().err
    assert not list(
        (registry / "mlruns").rglob(f"{client.get_model_version('synthetic', '2').run_id}/artifacts/model.sig")
    )


@pytest.mark.parametrize("what", ["nothing.pem", "no key"])
def test_a_key_that_is_none_is_named_and_nothing_moves(registry, client, keys, tmp_path, capsys, what):
    key = tmp_path / what
    if what == "no key":
        key.write_text("hello")
    assert promote.main(["synthetic", "1", "--sign", str(key)]) == 1
    assert str(key) in capsys.readouterr().err
    assert history.entries(client, "synthetic") == []


def test_a_signature_is_of_one_models_name(registry, client, keys, service, capsys):
    """The same files under a second name, alias and log included: what was signed for the first is not the second's."""
    assert promote.main(["synthetic", "1", "--sign", str(keys / "ours.pem")]) == 0
    found = client.get_model_version("synthetic", "1")
    client.create_registered_model("second")
    client.create_model_version("second", found.source, run_id=found.run_id, tags=found.tags)
    entry = {"model": "second", "alias": "champion", "version": 1, "previous": None, "decision": "promoted"}
    history.append(client, entry | {"why": None} | history.contents(found))
    client.set_registered_model_alias("second", "champion", "1")
    assert deploy.main(["second@champion", "--to", str(service), "--verify", str(keys / "ours.pub")]) == 1
    assert "second version 1 is not signed by" in capsys.readouterr().err
    assert run(service, "--verify", str(keys / "ours.pub")) == 0


def test_a_signature_is_looked_at_once_for_each_key(registry, keys, service, monkeypatch, capsys):
    """A watch looks every few seconds; another key is another question."""
    assert promote.main(["synthetic", "1", "--sign", str(keys / "ours.pem")]) == 0
    verify, asked = deploy.verify, []
    monkeypatch.setattr(deploy, "verify", lambda version, key: asked.append(key.name) or verify(version, key))
    for _ in range(3):
        assert run(service, "--verify", str(keys / "ours.pub")) == 0
    assert run(service, "--verify", str(keys / "theirs.pub")) == 1
    assert asked == ["ours.pub", "theirs.pub"]


def test_with_a_key_the_way_back_is_checked_too(registry, client, keys, service, capsys):
    """Version 1 was served before there was a key: neither is it gone back to, nor called served."""
    assert promote.main(["synthetic", "1"]) == 0
    assert run(service) == 0
    ours = ["--verify", str(keys / "ours.pub")]
    assert run(service, *ours) == 1
    assert "synthetic version 1 is not signed" in capsys.readouterr().err
    assert promote.main(["synthetic", "2", "--sign", str(keys / "ours.pem")]) == 0
    assert run(service, *ours) == 0
    assert run(service, "--rollback", *ours) == 1
    assert "synthetic version 1 is not signed" in capsys.readouterr().err
    assert served(service) == 2
    assert run(service, "--rollback") == 0
    assert served(service) == 1
