"""Aliases move when they are earned, by one person at a time, and the log keeps what happened."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autolora.common.files import read_json
from pipelines import promote
from pipelines.promote import main
from pipelines.registry import decision_log as history
from pipelines.registry.versions import alias_version
from stages.tracking.client import connect


def log(name="synthetic"):
    return [
        (e["alias"], e["version"], e["previous"], e["decision"])
        for e in history.entries(connect().MlflowClient(), name)
    ]


def artifact(registry, name):
    """Where the registry keeps this file of version 1."""
    version = connect().MlflowClient().get_model_version("synthetic", "1")
    key = version.source.rpartition("/")[2] if name == "model.onnx" else version.run_id
    (path,) = registry.glob(f"mlruns/**/{key}/**/{name}")
    return path


def champion():
    return alias_version(connect().MlflowClient(), "synthetic", "champion")


def test_the_better_one_becomes_champion_the_worse_one_does_not(registry, client, capsys):
    assert champion() is None
    assert [main(["synthetic", v, "--to", "champion"]) for v in ("1", "2", "3")] == [0, 0, 1]
    assert champion() == 2
    out = capsys.readouterr().out
    assert "version 2 -> champion: PROMOTED" in out
    assert "version 3 -> champion: REFUSED" in out
    assert "not shown to be better on 200 images" in out
    assert log() == [
        ("champion", 1, None, "promoted"),
        ("champion", 2, 1, "promoted"),
        ("champion", 3, 2, "refused"),
    ]
    tags = client.get_model_version("synthetic", "2").tags
    assert tags["previous_version"] == "1"
    assert float(tags["promotion_p"]) < 1e-3
    assert tags["promoted_by"]

    # what has been refused can be forced, visibly, and rolled back
    assert main(["synthetic", "3", "--force", "--why", "a drill"]) == 0
    assert client.get_model_version("synthetic", "3").tags["forced"] == "yes"
    assert main(["synthetic", "--rollback"]) == 0
    assert champion() == 2
    assert main(["synthetic", "--rollback"]) == 0
    assert champion() == 1
    assert main(["synthetic", "--rollback"]) == 1
    assert "nothing to go back to" in capsys.readouterr().err
    assert main(["synthetic", "--history"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 6
    assert "forced" in out
    assert "why: a drill" in out


def test_a_challenger_needs_only_its_gates(registry, tmp_path):
    assert main(["synthetic", "2"]) == 0
    assert main(["synthetic", "3", "--to", "challenger"]) == 0  # worse than the champion, and good enough
    strict = tmp_path / "params.yaml"
    strict.write_text(Path("params.yaml").read_text().replace("robust: 0.3", "robust: 0.65"))
    assert main(["synthetic", "1", "--to", "challenger", "--params", str(strict)]) == 1
    assert alias_version(connect().MlflowClient(), "synthetic", "challenger") == 3


def test_the_receipt_names_a_version(registry, capsys):
    assert main(["synthetic", "registered", "--to", "champion"]) == 0
    assert champion() == 1


def test_an_alias_that_moves_meanwhile_stops_the_promotion(registry, client, monkeypatch, capsys):
    examine = promote.examine

    def slow(*arguments):
        found = examine(*arguments)
        client.set_registered_model_alias("synthetic", "champion", "1")
        return found

    monkeypatch.setattr(promote, "examine", slow)
    assert main(["synthetic", "2"]) == 1
    assert "the alias moved from None to 1" in capsys.readouterr().err
    assert champion() == 1
    assert [e[3] for e in log()] == ["promoted", "withdrawn"]
    assert history.reigns(history.entries(connect().MlflowClient(), "synthetic"), "champion") == []


def test_of_two_who_promote_at_once_only_one_does(registry, client, monkeypatch, capsys):
    examine = promote.examine
    inner = []

    def overtaken(*arguments):
        monkeypatch.setattr(promote, "examine", examine)
        inner.append(main(["synthetic", "1"]))  # somebody else, from beginning to end
        client.delete_registered_model_alias("synthetic", "champion")  # so that only the claim can tell
        return examine(*arguments)

    monkeypatch.setattr(promote, "examine", overtaken)
    assert main(["synthetic", "2"]) == 1
    assert inner == [0]
    assert "somebody else began to promote" in capsys.readouterr().err


def test_tampered_evidence_is_named_and_refused(registry, capsys):
    path = artifact(registry, "evidence/reports/robustness.json")
    path.write_text(path.read_text().replace('"robust_accuracy": 0.6', '"robust_accuracy": 0.9'))
    assert main(["synthetic", "1"]) == 1
    error = capsys.readouterr().err
    assert "reports/robustness.json changed afterwards" in error
    assert champion() is None


def test_tampered_tags_are_refused_too(registry, client, capsys):
    client.set_model_version_tag("synthetic", "1", "robust_accuracy", "0.9900")
    assert main(["synthetic", "1", "--force", "--why", "nobody will look"]) == 1
    assert "tag robust_accuracy says 0.9900, its evidence says 0.6000" in capsys.readouterr().err
    assert champion() is None


def test_a_tampered_network_is_refused(registry, capsys):
    path = artifact(registry, "model.onnx")
    path.write_bytes(path.read_bytes() + b"\0")
    assert main(["synthetic", "1"]) == 1
    assert "models/export/model.onnx changed afterwards" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthetic", "7"], "no version 7 of synthetic: there are 1, 2, 3"),
        (["other", "1"], "no version 1 of other, and no model"),
    ],
)
def test_what_is_not_there_is_named(registry, capsys, arguments, message):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_removed_entry_and_an_unexplained_move_are_seen(registry, client, capsys):
    main(["synthetic", "1"]), main(["synthetic", "2"]), main(["synthetic", "1", "--force", "--why", "drill"])
    capsys.readouterr()
    found = history.entries(connect().MlflowClient(), "synthetic")
    kept = [e for e in found if e["version"] != 2]
    assert any("removed from the log" in line for line in history.lines(kept))
    assert not any("removed from the log" in line for line in history.lines(found))
    client.set_registered_model_alias("synthetic", "champion", "2")
    main(["synthetic", "--history"])
    assert "champion is version 2, which no entry explains" in capsys.readouterr().out


def test_a_promotion_that_was_killed_after_the_alias_moved_is_completed(registry, client, monkeypatch, capsys):
    main(["synthetic", "1", "--to", "challenger"])

    def killed(client, entry):
        client.set_model_version_tag("synthetic", "2", "decision", "promoted to champion")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(promote, "_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            main(["synthetic", "2", "--to", "champion"])
    assert champion() == 2
    decisions = log()
    assert main(["synthetic", "2", "--to", "champion"]) == 0
    said = capsys.readouterr().out
    assert "version 2 is champion already, but that promotion had been cut short: promoted_at, champion_since," in said
    tags = client.get_model_version("synthetic", "2").tags
    (entry,) = [e for e in history.entries(client, "synthetic") if e["version"] == 2]
    assert (tags["promoted_at"], tags["promoted_by"]) == (entry["at"], entry["by"])
    assert log() == decisions  # nothing new was decided
    assert main(["synthetic", "2", "--to", "champion"]) == 1  # and now it is whole
    assert "is champion already" in capsys.readouterr().err


def test_tags_of_a_later_decision_are_not_overwritten(registry, client, capsys):
    assert [main(["synthetic", "2", "--to", alias]) for alias in ("challenger", "champion", "challenger")] == [0, 0, 1]
    assert "is challenger already" in capsys.readouterr().err
    assert client.get_model_version("synthetic", "2").tags["decision"] == "promoted to champion"


def test_force_needs_a_reason(capsys):
    with pytest.raises(SystemExit):
        main(["synthetic", "1", "--force"])
    assert "--why" in capsys.readouterr().err


def test_the_receipt_of_another_model_is_refused(registry, capsys):
    assert read_json("models/registered.json")["name"] == "synthetic"
    assert main(["other", "registered"]) == 1
    assert "is of synthetic, not of other" in capsys.readouterr().err


def test_the_receipt_of_the_model_before_is_refused(registry, tmp_path, monkeypatch, capsys):
    """After `dvc exp apply`: the model is the experiment's, the receipt is not."""
    folder = shutil.copytree(registry / "1", tmp_path / "applied")
    shutil.copy(registry / "2/models/export/model.onnx", folder / "models/export/model.onnx")
    monkeypatch.chdir(folder)
    assert main(["synthetic", "registered"]) == 1
    assert "`dvc repro register` registers this one first" in capsys.readouterr().err
    assert champion() is None


def test_gates_travel_with_the_version(registry, tmp_path, monkeypatch, capsys):
    """Another model's params.yaml where promotion is started decides nothing, and cannot be made to."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loose = Path("params.yaml")
    mine = (registry / "1/params.yaml").read_text().replace("robust: 0.3", "robust: 0.99")
    loose.write_text(mine.replace("name: synthetic", "name: other"))
    assert main(["synthetic", "1"]) == 0  # by its own gates
    assert main(["synthetic", "2", "--params", "params.yaml"]) == 1
    assert "params.yaml is of other (register.name), not of synthetic" in capsys.readouterr().err
    loose.write_text(mine)
    assert main(["synthetic", "2", "--params", "params.yaml"]) == 1
    assert "at least 0.9900 is asked for" in capsys.readouterr().out


def test_a_version_without_gates_is_refused(registry, client, capsys):
    client.delete_model_version_tag("synthetic", "1", "gates")
    assert main(["synthetic", "1"]) == 1
    assert "has no gates on record: `dvc repro --force --single-item register`" in capsys.readouterr().err
    client.set_model_version_tag("synthetic", "1", "gates", '{"robust": "none"}')
    assert main(["synthetic", "1"]) == 1
    assert "its gates are unreadable" in capsys.readouterr().err


def test_who_is_champion_and_since_when(registry, client, capsys):
    main(["synthetic", "1"])
    client.set_registered_model_alias("synthetic", "challenger", "3")
    capsys.readouterr()
    assert main(["synthetic"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    entry = history.entries(client, "synthetic")[0]
    assert first.startswith("champion    version 1  linf:16/255  clean 0.9000  robust 0.6000 (n = 200)  since ")
    assert f"since {entry['at'][:19]}Z, promoted by {entry['by']}" in first
    assert "challenger  version 3" in second
    assert "no entry of the log explains it" in second


def test_a_clock_that_was_set_back_changes_no_order(registry, client, monkeypatch):
    """Each entry follows the one before, whatever the clock said: a rollback goes to the version before."""
    times = iter([f"2026-11-{day:02}T00:00:00.000+00:00" for day in (20, 10, 5, 4)])
    monkeypatch.setattr(history, "now", lambda: next(times))
    for version in ("1", "2", "3"):
        main(["synthetic", version, "--force", "--why", "drill"])
    assert [e["version"] for e in history.entries(client, "synthetic")] == [1, 2, 3]
    assert main(["synthetic", "--rollback"]) == 0
    assert champion() == 2


@pytest.mark.parametrize("entry", [None, "{", "[]", '{"model": "synthetic"}', '{"version": "2"}'])
def test_a_malformed_entry_is_reported_and_passed_over(registry, client, capsys, entry):
    main(["synthetic", "1"])
    experiment = client.get_experiment_by_name("autolora-promotions").experiment_id
    run = client.create_run(experiment, tags={"model": "synthetic"} | ({"entry": entry} if entry else {}))
    capsys.readouterr()
    assert main(["synthetic", "--history"]) == 0
    said = capsys.readouterr()
    assert "champion -> 1" in said.out
    assert f"run {run.info.run_id} of the log is no decision" in said.err
    assert main(["synthetic", "2"]) == 0
    assert champion() == 2


def test_order_where_two_were_written_at_once_and_where_one_was_removed():
    def entry(identity, follows, at):
        return {"id": identity, "follows": follows, "at": at}

    both = [entry("d", "c", "1"), entry("c", "a", "9"), entry("b", "a", "8"), entry("a", None, "5")]
    assert [e["id"] for e in history.in_order(both)] == ["a", "b", "c", "d"]
    removed = [entry("y", "x", "1"), entry("x", "gone", "7"), entry("b", "a", "6"), entry("a", None, "9")]
    assert [e["id"] for e in history.in_order(removed)] == ["a", "b", "x", "y"]
    circle = [entry("p", "q", "1"), entry("q", "p", "2"), entry("a", None, "9")]
    assert history.in_order(circle)[0]["id"] == "a"


def test_the_log_keeps_what_was_decided_on(registry, client):
    main(["synthetic", "1"])
    entry = history.entries(client, "synthetic")[0]
    tags = client.get_model_version("synthetic", "1").tags
    assert {key: entry[key] for key in history.CONTENTS} == {key: tags[key] for key in history.CONTENTS}
    assert entry["gates"]["robust"] == 0.3


def test_a_promotion_that_dies_before_the_alias_moves_has_never_happened(registry, client, monkeypatch, capsys):
    """Killed between the log and the alias: no later rollback goes to a version that never reigned."""
    assert main(["synthetic", "1"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr("mlflow.MlflowClient.set_registered_model_alias", _killed)
        patched.setattr(promote, "withdraw", lambda *given: None)  # kill -9 leaves no time for it
        with pytest.raises(KeyboardInterrupt):
            main(["synthetic", "2"])
    assert champion() == 1
    decided = len(log())
    promote.withdraw_cut_short(client, "synthetic", "champion")
    assert len(log()) == decided  # of this minute: it may be under way
    monkeypatch.setattr(promote, "UNDER_WAY", 0.0)
    assert main(["synthetic", "3", "--force", "--why", "test"]) == 0
    found = [(e["version"], e["decision"]) for e in history.entries(client, "synthetic")]
    assert found == [(1, "promoted"), (2, "promoted"), (2, "withdrawn"), (3, "forced")]
    assert main(["synthetic", "--rollback"]) == 0
    assert champion() == 1


def _killed(*given, **named):
    raise KeyboardInterrupt


def test_an_alias_that_cannot_be_set_withdraws_the_decision(registry, client, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("mlflow.MlflowClient.set_registered_model_alias", _killed)
        with pytest.raises(KeyboardInterrupt):
            main(["synthetic", "2"])
    assert [e["decision"] for e in history.entries(client, "synthetic")] == ["promoted", "withdrawn"]


def test_gates_that_were_emptied_are_no_gates(registry, client, capsys):
    client.set_model_version_tag("synthetic", "1", "gates", "{}")
    assert main(["synthetic", "1"]) == 1
    assert "its gates are unreadable" in capsys.readouterr().err


def test_what_happened_is_not_withdrawn_after_a_later_decision(registry, client, monkeypatch, capsys):
    """Version 2 was champion, became challenger too, and the alias was moved back by hand: that must be seen."""
    monkeypatch.setattr(promote, "UNDER_WAY", 0.0)
    assert [main(["synthetic", *rest]) for rest in (["1"], ["2"], ["2", "--to", "challenger"])] == [0, 0, 0]
    client.set_registered_model_alias("synthetic", "champion", "1")
    assert main(["synthetic", "3"]) == 1  # any other decision
    assert "withdrawn" not in [decision for *_, decision in log()]
    capsys.readouterr()
    assert main(["synthetic"]) == 0
    assert promote_says_unexplained(capsys.readouterr().out)


def promote_says_unexplained(out):
    return "champion    version 1" in out and "the alias was moved by other means" in out


def test_a_version_that_was_deleted_is_withdrawn_by_nobody_and_passed_over(registry, client, monkeypatch, capsys):
    monkeypatch.setattr(promote, "UNDER_WAY", 0.0)
    assert [main(["synthetic", *rest]) for rest in (["1"], ["2"], ["3", "--force", "--why", "a drill"])] == [0, 0, 0]
    client.delete_model_version("synthetic", "2")
    assert main(["synthetic", "--rollback"]) == 0
    assert "version 2 is no longer in the registry: passed over" in capsys.readouterr().err
    assert champion() == 1
    assert [decision for *_, decision in log()] == ["promoted", "promoted", "forced", "rolled back"]


def test_one_that_reigned_twice_is_left_for_the_one_between():
    """1, 2, 1 by force, 3; back to 1, and back again: that is 2."""
    moves = [(1, None, "promoted"), (2, 1, "promoted"), (1, 2, "forced"), (3, 1, "promoted"), (1, 3, "rolled back")]
    log = [
        {"id": str(n), "alias": "champion", "version": version, "previous": before, "decision": decision}
        for n, (version, before, decision) in enumerate(moves)
    ]
    assert history.reigns(log, "champion") == [1, 2, 1]
    back = {"id": "5", "alias": "champion", "version": 2, "previous": 1, "decision": "rolled back"}
    assert history.reigns([*log, back], "champion") == [1, 2]


def test_tags_of_an_earlier_decision_go_with_it(registry, client):
    assert main(["synthetic", "1"]) == 0
    assert main(["synthetic", "3", "--force", "--why", "a drill"]) == 0
    assert main(["synthetic", "2", "--why", "better"]) == 0
    assert main(["synthetic", "--rollback"]) == 0
    tags = client.get_model_version("synthetic", "3").tags
    assert tags["decision"] == "rolled back to champion"
    assert not {"forced", "promotion_why", "promotion_p"} & set(tags)


def test_a_champion_whose_evidence_is_lost_can_be_replaced_by_force(registry, client, capsys):
    assert main(["synthetic", "1"]) == 0
    artifact(registry, "evidence/reports/robustness.json").unlink()
    assert main(["synthetic", "2"]) == 1
    assert "refuse  champion: no comparison: synthetic version 1: reports/robustness.json" in capsys.readouterr().out
    assert main(["synthetic", "2", "--force", "--why", "evidence of 1 was lost"]) == 0
    assert champion() == 2


def test_canaries_that_were_changed_are_refused_before_the_alias_moves(registry, capsys):
    artifact(registry, "canaries.npz").write_bytes(b"other")
    assert main(["synthetic", "1"]) == 1
    assert "canaries.npz was changed after it was registered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["1", "--rollback"], "--rollback goes to the version before"),
        (["--rollback", "--force", "--why", "x"], "it takes no force"),
        (["1", "--history"], "--history only shows: it takes no VERSION"),
        (["--sign", "key.pem"], "which VERSION?"),
        (["--params", "other.yaml"], "which VERSION?"),
    ],
)
def test_an_option_out_of_place_is_refused(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["synthetic", *arguments])
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_name_with_a_slip_of_the_pen_is_no_model_without_a_champion(registry, capsys):
    for more in ([], ["--history"]):
        assert main(["synthetc", *more]) == 1
        assert "has no model named synthetc" in capsys.readouterr().err


def test_a_folder_without_a_registry_gets_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--history"], ["1"], ["--rollback"]):
        assert main(["synthetic", *more]) == 1
        assert "there is no registry at sqlite:///" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_alias_that_was_removed_by_hand_is_seen(registry, client, capsys):
    assert main(["synthetic", "1"]) == 0
    client.delete_registered_model_alias("synthetic", "champion")
    capsys.readouterr()
    assert main(["synthetic"]) == 0
    assert "it was version 1: the alias was removed by other means" in capsys.readouterr().out
    assert main(["synthetic", "--history"]) == 0
    assert "champion is none, which no entry explains" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["<<<<<<< HEAD", "[]", '{"name": "synthetic"}'])
def test_a_receipt_that_is_none_is_one_line(registry, content, capsys):
    Path("models").mkdir(exist_ok=True)
    Path("models/registered.json").write_text(content)
    assert main(["synthetic", "registered"]) == 1
    assert "models/registered.json is no receipt any more" in capsys.readouterr().err


def test_a_server_that_refuses_is_not_a_model_that_is_missing(registry, monkeypatch, capsys):
    from mlflow import MlflowException

    def denied(*given):
        raise MlflowException("no permission to write")

    monkeypatch.setattr("mlflow.MlflowClient.set_registered_model_tag", denied)
    assert main(["synthetic", "1"]) == 1
    assert "refuses: no permission to write" in capsys.readouterr().err


def test_a_rollback_to_a_network_that_was_changed_is_refused(registry, capsys):
    assert [main(["synthetic", version]) for version in ("1", "2")] == [0, 0]
    path = artifact(registry, "model.onnx")  # of version 1
    path.write_bytes(path.read_bytes() + b"\0")
    assert main(["synthetic", "--rollback"]) == 1
    assert "models/export/model.onnx changed afterwards" in capsys.readouterr().err
    assert champion() == 2
    assert len(log()) == 2


def test_a_champion_from_before_the_log_can_be_gone_back_to(registry, client):
    """Its alias was set by hand; the first entry of the log says that it was there."""
    client.set_registered_model_alias("synthetic", "champion", "1")
    assert main(["synthetic", "2"]) == 0
    assert main(["synthetic", "--rollback"]) == 0
    assert champion() == 1
