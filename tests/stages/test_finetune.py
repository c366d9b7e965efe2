"""The finetune stage on small prepared data: its files, its bytes, its lock, its processes, and what it never opens."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

import autolora
from autolora.backbones.classifier import load_classifier
from autolora.training.settings import Settings
from stages import finetune as stage
from stages.common.errors import BUSY
from stages.common.params import Finetune
from stages.common.runner import StageError
from stages.common.views import FinetuneParams, load
from stages.finetune import member_seed
from tests.method.kill_and_resume import compare
from tests.method.small import THREAT, images

OPENED: list[str] = []
sys.addaudithook(lambda event, args: OPENED.append(str(args[0])) if event == "open" else None)


@pytest.fixture
def workspace(tmp_path, root, monkeypatch, migrated):
    """A folder as `dvc repro` sees it, with a small network and 16-pixel images of three classes."""
    for name, n in (("train", 48), ("val", 12), ("test", 12)):
        folder = tmp_path / "data/prepared" / name
        folder.mkdir(parents=True)
        x, y = images(n, size=16)
        np.save(folder / "images.npy", x)
        np.save(folder / "labels.npy", y)
        np.save(folder / "ids.npy", np.array([f"{name}{i}" for i in range(n)], "S64"))
        (folder / "classes.json").write_text('["red", "green", "blue"]')
    shutil.copy(root / "dvc.yaml", tmp_path)
    shutil.copy(migrated, tmp_path / "mlflow.db")
    change(tmp_path, root / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    return tmp_path


def change(folder: Path, source: Path, **finetune) -> None:
    params = yaml.safe_load(source.read_text())
    params["backbone"] |= {"weights": None, "options": {"channels": [4, 4, 8, 8], "stem_width": 4}}
    given = {"eps_schedule": "constant"} | params["finetune"]  # a network of random weights would get a ramp
    params["finetune"] = given | {"epochs": 2, "batch_size": 16, **finetune}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def contents(folder):
    files = [*sorted((folder / "models/finetuned").iterdir()), folder / "reports/training.csv"]
    return {file.name: file.read_bytes() for file in files}


def test_files_and_bytes(workspace):
    OPENED.clear()
    stage.finetune()
    assert any("data/prepared/train" in name for name in OPENED)
    assert not [name for name in OPENED if "prepared/test" in name]
    first = contents(workspace)
    assert set(first) == {
        "robust.safetensors",
        "branch.safetensors",
        "natural.safetensors",
        "finetuned.json",
        "training.csv",
    }
    shutil.rmtree(workspace / ".work")
    for trained_before in (0, 2):
        stage.finetune()
        assert contents(workspace) == first
        timing = json.loads((workspace / "reports/timing/finetune.json").read_text())
        assert timing["resumed_after"] == trained_before  # epochs, of which `seconds` knows nothing
    rows = list(csv.DictReader((workspace / "reports/training.csv").open()))
    assert list(rows[0]) == [
        *("epoch", "lr", "lambda1", "lambda2", "loss", "loss_natural", "loss_adversarial", "loss_kl"),
        *("natural_accuracy", "val_clean", "val_robust", "gradient_cosine", "event"),
    ]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    record = json.loads(first["finetuned.json"])
    assert rows[record["best_epoch"] - 1]["event"] == "best"
    assert float(rows[record["best_epoch"] - 1]["val_robust"]) == pytest.approx(record["val_robust"], abs=1e-6)


def test_a_recipe_is_trained_and_told_and_the_twin_knows_nothing_of_it(workspace):
    change(workspace, workspace / "params.yaml", epochs=1)
    stage.finetune()
    plain = contents(workspace)
    change(workspace, workspace / "params.yaml", epochs=1, recipe="nfgsm2022")
    stage.finetune()
    changed = contents(workspace)
    assert "axes" not in json.loads(plain["finetuned.json"])
    record = json.loads(changed["finetuned.json"])
    assert record["method"] == "madry"
    assert "axes" not in record
    assert record["attack"] == "auto"
    assert record["recipe"]["name"] == "nfgsm2022"
    assert record["recipe"]["paper"].startswith("N-FGSM (de Jorge et al., NeurIPS 2022)")
    assert changed["robust.safetensors"] != plain["robust.safetensors"]
    assert changed["natural.safetensors"] == plain["natural.safetensors"]


@pytest.mark.parametrize("method", ["natural", "madry"])
def test_what_is_asked_for_is_what_is_trained_and_told_and_the_twin_is_plain(workspace, monkeypatch, method):
    """Also where the method itself is natural; and what has no axis of its own in the grammar is told too."""
    asked = {"rate": 0.05, "smoothing": 0.1, "average": 0.9, "augmentation": "none", "rank": 8, "trains": "lora"}
    given, whole = [], stage.tune
    schedule = "auto" if method == "natural" else "constant"  # an attack's
    monkeypatch.setattr(stage, "tune", lambda *some, **settings: given.append(settings) or whole(*some, **settings))
    change(workspace, workspace / "params.yaml", epochs=1, method=method, eps_schedule=schedule, **asked)
    stage.finetune()
    robust, natural = given
    assert {key: robust[key] for key in asked} == asked
    assert not {"rate", "smoothing", "trains"} & set(natural)
    record = json.loads((workspace / "models/finetuned/finetuned.json").read_text())
    told = {"trains": "lora", "smoothing": 0.1, "augmentation": "none", "average": 0.9, "rate": 0.05}
    assert record["axes"] == told
    assert record["first_rate"] == pytest.approx(0.05)
    assert "diverged" not in record  # the rate was asked for


def test_the_record_tells_of_each_best_epoch(workspace, monkeypatch):
    """Planted: of robust network and twin the first of two epochs is the best."""
    whole = stage.tune

    def planted(*some, method, **settings):
        tuned, clean = whole(*some, method=method, **settings), 0.25 if method == "natural" else 0.5
        tuned.best_epoch = 1
        tuned.history[0] |= {"val_clean": clean, "val_robust": clean / 2}
        tuned.history[1] |= {"val_clean": 1.0, "val_robust": 1.0}
        return tuned

    monkeypatch.setattr(stage, "tune", planted)
    stage.finetune()
    record = json.loads((workspace / "models/finetuned/finetuned.json").read_text())
    found = [
        {key: each[key] for key in ("best_epoch", "val_clean", "val_robust")} for each in (record, record["natural"])
    ]
    assert found == [
        {"best_epoch": 1, "val_clean": 0.5, "val_robust": 0.25},
        {"best_epoch": 1, "val_clean": 0.25, "val_robust": 0.125},
    ]


def test_epochs_of_an_attempt_that_diverged_are_no_earlier_life(workspace, monkeypatch):
    """Seen: 1, 2 and, from the start again, 1, 2."""

    whole = stage.tune

    def twice(*some, on_epoch=None, **settings):
        tuned = whole(*some, on_epoch=on_epoch, **settings)
        for record in tuned.history if on_epoch else []:
            on_epoch(record)
        return tuned

    monkeypatch.setattr(stage, "tune", twice)
    stage.finetune()
    timing = json.loads((workspace / "reports/timing/finetune.json").read_text())
    assert timing["resumed_after"] == 0


def test_a_backbone_that_is_not_robust_gets_an_eps_that_grows_and_the_record_says_why(workspace):
    change(workspace, workspace / "params.yaml", epochs=1, eps_schedule="auto")
    stage.finetune()
    record = json.loads(contents(workspace)["finetuned.json"])
    assert record["features_moved"] > 0.5
    assert record["axes"] == {"eps_schedule": "ramp"}


def test_a_twin_that_teaches_is_the_twin_that_is_compared_with(workspace):
    taught = {"method": "distill", "teacher": "first_pass", "natural_teacher": "twin", "smoothing": 0.0}
    change(workspace, workspace / "params.yaml", epochs=1, **taught)
    stage.finetune()
    record = json.loads((workspace / "models/finetuned/finetuned.json").read_text())
    assert record["axes"] == {"teacher": "first_pass", "natural_teacher": "twin"}
    methods = sorted(file.name.split("-")[0] for file in (workspace / ".work").rglob("*.pt"))
    assert methods == ["autolora", "distill", "natural"]


@pytest.mark.slow
def test_members_share_a_start_and_differ_by_seed(workspace):
    change(workspace, workspace / "params.yaml", epochs=1)
    stage.finetune()
    alone = contents(workspace)
    change(workspace, workspace / "params.yaml", epochs=1, members=2)
    stage.finetune()
    finetuned = workspace / "models/finetuned"
    for name in ("robust.safetensors", "branch.safetensors", "natural.safetensors"):
        assert (finetuned / name).read_bytes() == alone[name]
    record = json.loads((finetuned / "finetuned.json").read_text())
    runs = record.pop("members")["runs"]
    assert record == json.loads(alone["finetuned.json"])
    assert len({run["weights_sha256"] for run in runs}) == len({run["branch_sha256"] for run in runs}) == 2
    assert runs[0]["weights_sha256"] == record["weights_sha256"]["robust"]
    params = load(FinetuneParams)
    start = load_classifier(finetuned / "members/start.safetensors")
    second = autolora.finetune(
        start, stage.read_split("train"), stage.read_split("val"), params.threat, epochs=1, batch_size=16,
        seed=runs[1]["seed"], augmentation=params.finetune.augmentation, progress=False,
    )  # fmt: skip
    ours = load_classifier(finetuned / "members/2.safetensors").state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in second.model.state_dict().items())


def test_the_test_part_is_not_needed(workspace):
    shutil.rmtree(workspace / "data/prepared/test")
    stage.finetune()
    assert (workspace / "models/finetuned/robust.safetensors").exists()


@pytest.mark.slow
def test_progress_of_other_data_is_not_picked_up(workspace):
    stage.finetune()
    np.save(workspace / "data/prepared/train/ids.npy", np.array([f"other{i}" for i in range(48)], "S64"))
    stage.finetune()
    assert len(list((workspace / ".work/finetune").iterdir())) == 2


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_wrong_number_of_processes_is_named(monkeypatch, value):
    monkeypatch.setenv("AUTOLORA_PROCESSES", value)
    with pytest.raises(StageError, match=f"AUTOLORA_PROCESSES is '{value}'"):
        stage.wanted_processes()


def command(root, **environment):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)} | environment
    return [sys.executable, "-m", "stages.finetune"], environment


@pytest.mark.slow
def test_one_process_a_key_and_none_outlives_its_parent(workspace, root):
    change(workspace, workspace / "params.yaml", epochs=5000)
    line, environment = command(root, AUTOLORA_PROCESSES="2")
    with open("log.txt", "w") as log:
        parent = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: list(workspace.glob(".work/finetune/*/*.pt")) or parent.poll() is not None)
        assert parent.poll() is None, Path("log.txt").read_text()[-2000:]
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) >= 3  # torchrun and its two
        line, environment = command(root, AUTOLORA_PROCESSES="1")
        second = subprocess.run(line, env=environment, capture_output=True, text=True)
        assert second.returncode == BUSY
        assert "another process is at work" in second.stderr
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    hits = compare(kills=3, folder=tmp_path)
    assert len(hits) == 3


def test_the_stage_hands_on_what_params_and_library_both_know():
    for key in (*stage.KEYS, *stage.SEARCHED):
        assert key in Finetune.model_fields, key
        assert key in {field.name for field in dataclasses.fields(Settings)}, key
        assert getattr(Finetune(), key) == getattr(Settings(THREAT), key), key


def test_the_first_member_is_the_run_of_params_itself():
    """Its seed stands in finetuned.json: whoever repeats it must get it."""
    seeds = [member_seed(3, member) for member in range(4)]
    assert seeds[0] == 3
    assert len(set(seeds)) == 4
