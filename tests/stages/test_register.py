"""One version per content, whole, byte for byte, and nothing lost when something is away."""

from __future__ import annotations

import csv
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from autolora.common.files import file_sha256, read_json, write_json
from stages import register as registering
from stages.common.runner import StageError
from stages.evidence.files import Evidence
from stages.evidence.provenance import _md5, provenance_of
from stages.register import check_receipt, create, find, register, settle
from stages.tracking.client import connect
from stages.tracking.live_run import LIVE_STAGE
from tests.registry.synthetic import make_run


def test_a_version_has_its_evidence_and_is_the_file_of_dvc(registered, client, tmp_path):
    receipt = registered("a")
    version = client.get_model_version("synthetic", "1")
    mlflow = connect()
    folder = mlflow.artifacts.download_artifacts("models:/synthetic/1", dst_path=str(tmp_path / "down"))
    ours = tmp_path / "a/models/export/model.onnx"
    assert receipt["experiment_id"] == client.get_run(receipt["run_id"]).info.experiment_id != "0"
    assert file_sha256(f"{folder}/model.onnx") == file_sha256(ours) == receipt["onnx_sha256"]
    assert version.tags["onnx_sha256"] == receipt["onnx_sha256"]
    assert {
        "threat": "linf:16/255",
        "n": "200",
        "alpha": "0.1",
        "attack_version": "standard",
    }.items() <= version.tags.items()
    assert (
        float(version.tags["robust_accuracy"]) == read_json(tmp_path / "a/reports/robustness.json")["robust_accuracy"]
    )
    assert "AutoAttack standard, n = 200" in version.description
    # metrics are attached to the logged model, the input example is a stored image, and the model answers
    model = mlflow.get_logged_model(version.source.removeprefix("models:/"))
    assert {m.key: m.value for m in model.metrics}["robust_accuracy"] == pytest.approx(0.6)
    loaded = mlflow.pyfunc.load_model("models:/synthetic/1")
    x = np.load(tmp_path / "a/models/adversarial.npz")["x"][:5].astype(np.float32) / 255
    assert loaded.predict({"image": x})["logits"].shape == (5, 10)
    assert loaded.input_example["image"].shape == (1, 3, 8, 8)


def test_it_ends_with_what_there_is_and_what_to_do_next(registered, capsys):
    receipt = registered("a")
    assert capsys.readouterr().out.splitlines() == [
        f"register: synthetic version 1 at {receipt['tracking_uri']}",
        "  60\u202f% of 200 images withstand AutoAttack at linf:16/255; 90\u202f% are right when nobody attacks",
        "  15 of 16 checks pass, 1 warn",
        "  card     reports/card.html",
        "  promote  uv run python -m pipelines.promote synthetic 1 --to champion",
    ]


def test_a_list_of_runs_and_versions_reads_well(registered, client):
    run = client.get_run(registered("a")["run_id"])
    assert run.info.run_name == "model linf 16/255: 60 / 90"
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.tags[0].value) == ("digits", "test")
    version = client.get_model_version("synthetic", "1")
    assert version.description.startswith("60\u202f% of 200 images withstand AutoAttack at linf:16/255; ")


def test_the_run_mirrors_the_files(registered, client, tmp_path):
    run_id = registered("a")["run_id"]
    with open(tmp_path / "a/reports/training.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("lr", "lambda1", "val_robust"):
        history = {m.step: m.value for m in client.get_metric_history(run_id, name)}
        assert history == pytest.approx({int(r["epoch"]): float(r[name]) for r in rows})
    assert {a.path for a in client.list_artifacts(run_id)} >= {"card.html", "canaries.npz", "evidence", "plots"}
    local = connect().artifacts.download_artifacts(run_id=run_id, artifact_path="evidence/reports/robust_flags.npy")
    assert file_sha256(local) == file_sha256(tmp_path / "a/reports/robust_flags.npy")


def test_parameters_are_those_that_dvc_ran_with(registered, client, tmp_path):
    path = make_run(tmp_path / "a")
    (path / "dvc.lock").write_text(
        "stages:\n  prepare:\n    outs:\n    - {path: data/prepared, md5: 0123.dir}\n"
        "  finetune:\n    params:\n      params.yaml: {finetune.epochs: 7, threat: {norm: linf, eps: 16/255}}\n"
    )
    run = client.get_run(registered("a")["run_id"])
    assert run.data.params == {"finetune.epochs": "7", "threat.norm": "linf", "threat.eps": "16/255"}
    assert run.data.tags["data_version"] == "0123.dir"


def test_parameters_of_a_recipe_are_filled_in_and_register_has_no_past(registered, client, tmp_path):
    """dvc.lock has params.yaml as it is written, and of `register` what the registration before was given."""
    path = make_run(tmp_path / "a")
    (path / "dvc.lock").write_text(
        "stages:\n  finetune:\n    params:\n      params.yaml: {finetune: {recipe: awp2020, epochs: 7}}\n"
        "  register:\n    params:\n      params.yaml: {register: {name: before}}\n"
    )
    params = client.get_run(registered("a")["run_id"]).data.params
    assert (params["finetune.method"], params["finetune.weight_attack"], params["finetune.epochs"]) == (
        "vanilla",
        "0.005",
        "7",
    )
    assert not [key for key in params if key.startswith("register")]


def test_the_card_in_the_registry_has_the_gates_of_today(registered, client, tmp_path):
    receipt = registered("a")
    params = tmp_path / "a/params.yaml"
    content = yaml.safe_load(params.read_text())
    content["register"]["gates"] = {"clean": 0.5, "robust": 0.25}
    params.write_text(yaml.safe_dump(content))
    assert registered("a") == receipt
    folder = client.download_artifacts(receipt["run_id"], "card.html", str(tmp_path))
    assert "at least 50\u202f% clean and 25\u202f% robust" in Path(folder).read_text(encoding="utf-8")


def test_how_it_was_trained_is_what_the_stage_wrote(registered, tmp_path):
    """The card says it, so a record that was edited is refused like any evidence."""
    path = make_run(tmp_path / "a")
    folder = path / "models/finetuned"
    folder.mkdir(parents=True)
    (folder / "robust.safetensors").write_bytes(b"weights")
    (folder / "finetuned.json").write_text('{"method": "vanilla"}')
    digest = _md5(folder)
    (path / "dvc.lock").write_text(
        f"stages:\n  finetune:\n    outs:\n    - {{path: models/finetuned, md5: {digest}}}\n"
    )
    (folder / "finetuned.json").write_text('{"method": "autolora"}')
    with pytest.raises(StageError, match="models/finetuned: not what the stage wrote"):
        registered("a")


def test_same_content_is_one_version_and_other_content_another(registered, client):
    first, again, other = registered("a"), registered("a"), registered("b", seed=5)
    assert again == first
    assert (first["version"], other["version"]) == (1, 2)
    assert len(client.search_model_versions("name = 'synthetic'")) == 2


def test_other_evidence_on_the_same_network_is_another_version_with_a_run_of_its_own(registered, client, tmp_path):
    first = registered("a")
    path = tmp_path / "a/reports/robustness.json"
    write_json(path, read_json(path) | {"seed": 1})
    second = registered("a")
    assert (first["version"], second["version"]) == (1, 2)
    assert first["run_id"] != second["run_id"]


def test_code_that_is_not_committed_is_told_from_params_that_are_in_the_lock(tmp_path):
    """A preset takes the place of params.yaml, and every run writes dvc.lock: the code is the committed one."""
    (tmp_path / "params.yaml").write_text("seed: 0")
    (tmp_path / "stage.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    found = provenance_of(tmp_path)
    assert (found["git_dirty"], found.get("git_params")) == ("no", None)
    (tmp_path / "params.yaml").write_text("seed: 1")
    (tmp_path / "dvc.lock").write_text("stages: {}")
    found = provenance_of(tmp_path)
    assert (found["git_dirty"], found["git_params"]) == ("no", "changed")
    (tmp_path / "notes.txt").write_text("no stage reads it")
    assert provenance_of(tmp_path)["git_dirty"] == "no"
    (tmp_path / "mine.yaml").write_text("a recipe")
    assert provenance_of(tmp_path)["git_dirty"] == "yes"
    (tmp_path / "mine.yaml").unlink()
    (tmp_path / "stage.py").write_text("2")
    assert provenance_of(tmp_path)["git_dirty"] == "yes"


def test_what_git_cannot_say_is_not_called_clean(tmp_path, monkeypatch):
    """No repository, a damaged index, a disk that answers too late."""
    assert provenance_of(tmp_path) == {"git_dirty": "unknown"}
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".git/index").write_bytes(b"torn")
    assert provenance_of(tmp_path)["git_dirty"] == "unknown"
    monkeypatch.setattr(subprocess, "run", slow)
    assert provenance_of(tmp_path)["git_dirty"] == "unknown"


def slow(arguments, timeout, **how):
    raise subprocess.TimeoutExpired(arguments, timeout)


def created_twice(tmp_path, monkeypatch):
    """The evidence of a run, and the two versions that two machines make of it at once."""
    path = make_run(tmp_path / "a")
    monkeypatch.chdir(path)
    (path / "reports/card.html").write_text("card")
    evidence, mlflow = Evidence("."), connect()
    return evidence, *(create(mlflow, "synthetic", evidence, provenance_of(path), {}) for _ in range(2))


def test_registered_by_two_machines_at_the_same_moment_one_stays(registered, client, tmp_path, monkeypatch):
    """Both have looked, both found nothing, both created: each settles, and they agree."""
    evidence, mine, yours = created_twice(tmp_path, monkeypatch)
    assert len(find(client, "synthetic", evidence.key)) == 2
    kept = [settle(client, "synthetic", evidence.key, version).version for version in (yours, mine)]
    assert [int(v) for v in kept] == [1, 1]
    assert [int(v.version) for v in find(client, "synthetic", evidence.key)] == [1]
    assert [client.get_run(v.run_id).info.lifecycle_stage for v in (mine, yours)] == ["active", "deleted"]


def test_a_file_changed_in_the_registry_is_named_and_refused(registered, store):
    registered("a")
    (path,) = store.rglob("model.onnx")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(StageError, match=r"synthetic version 1 .*another model.onnx.*changed afterwards"):
        registered("a")


def test_a_server_that_is_away_is_named_and_the_card_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "a"))
    with socket.socket() as free:  # bound but not listening: refused at once
        free.bind(("127.0.0.1", 0))
        uri = f"http://user:secret@127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(StageError, match=r"127\.0\.0\.1.*MLFLOW_TRACKING_URI.*Nothing is lost") as error:
            register()
    assert "secret" not in str(error.value)
    assert (tmp_path / "a/reports/card.html").is_file()
    assert not (tmp_path / "a/models/registered.json").exists()


def test_a_server_that_dies_while_it_is_written_to_is_named_too(registered, tmp_path, monkeypatch):
    monkeypatch.setattr(registering, "connect", lambda: dies(monkeypatch))
    with pytest.raises(StageError, match=r"http://127\.0\.0\.1:9 does not answer"):
        registered("a")


def dies(monkeypatch):
    """It answered, and then a request fails: nobody listens any more."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    raise ConnectionError("reset by peer")


def test_a_receipt_that_the_server_does_not_know_is_refused(registered, client, tmp_path):
    receipt = registered("a")
    assert int(check_receipt(client).version) == 1
    write_json("models/registered.json", receipt | {"version": 9})
    with pytest.raises(StageError, match=r"names synthetic version 9.*does not know.*MLFLOW_TRACKING_URI"):
        check_receipt(client)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("reports/robustness.json", {"weights_sha256": "0" * 64}, "do not speak of the same weights"),
        ("reports/export.json", {"onnx_sha256": "0" * 64}, "is not the file that reports/export.json describes"),
    ],
)
def test_what_was_not_attacked_is_not_registered(tmp_path, monkeypatch, file, change, message):
    monkeypatch.chdir(make_run(tmp_path / "a"))
    write_json(file, read_json(file) | change)
    with pytest.raises(StageError, match=message):
        register()


def test_of_two_registered_at_once_a_run_that_was_seen_live_stays(registered, client, tmp_path, monkeypatch):
    evidence, _, yours = created_twice(tmp_path, monkeypatch)
    client.set_tag(yours.run_id, "stage", LIVE_STAGE)
    assert int(settle(client, "synthetic", evidence.key, yours).version) == 1
    run = client.get_run(yours.run_id)
    assert (run.info.lifecycle_stage, run.data.tags["duplicate_of_version"]) == ("active", "1")
