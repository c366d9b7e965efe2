"""The stage in a folder of its own: every file of the contract, twice the same bytes, and what it refuses."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from autolora.attacks.report import by_class
from autolora.attacks.verdicts import CheckFailed
from autolora.backbones.classifier import Spec, build, load_classifier, save_classifier
from autolora.common.files import read_json, write_json
from autolora.data.images import TestImages
from autolora.data.sample import read_images, stratified
from stages import evaluate as stage
from stages.common.errors import MEND
from stages.common.views import EvaluateParams, load

CLASSES, SIDE, TEST = 4, 16, 24
OUTS = ("robustness.json", "metrics.json", "robust_flags.npy", "eps_curve.csv", "adversarial.png")


def classifier(seed: int):
    torch.manual_seed(seed)
    spec = Spec("resnet10t", CLASSES, SIDE, "nopool", {"channels": [16, 16, 16, 16], "stem_width": 16})
    return build(spec).eval()


@pytest.fixture
def workspace(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two random networks; the labels are what the first one says, so that it is right when clean."""
    monkeypatch.chdir(tmp_path)
    net = classifier(0)
    images = torch.randint(0, 256, (TEST, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ids = [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]
    test = tmp_path / "data/prepared/test"
    test.mkdir(parents=True)
    np.save(test / "images.npy", images.numpy())
    np.save(test / "labels.npy", net(images / 255).argmax(1).numpy())
    np.save(test / "ids.npy", np.array([i.encode() for i in ids], "S64"))
    write_json(test / "classes.json", [f"kind {k}" for k in range(CLASSES)])
    rows = [{"sha256": i, "split": "test", "near_duplicate": ""} for i in ids]
    write_manifest([*rows, {"sha256": "f" * 64, "split": "train", "near_duplicate": ""}])
    notes = {"alpha": "0.25", "threat": "linf:1/255", "robust_sha256": "a" * 64}
    save_classifier(net, "models/merged.safetensors", **notes)
    natural = save_classifier(classifier(1), "models/finetuned/natural.safetensors")
    write_json("models/finetuned/finetuned.json", {"weights_sha256": {"natural": natural, "robust": "a" * 64}})
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["evaluate"] = {"version": "fast", "images": 16}
    settings["threat"] = {"norm": "linf", "eps": "1/255"}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    Path("dvc.yaml").write_text((root / "dvc.yaml").read_text())
    return tmp_path


def write_manifest(rows: list[dict[str, str]]) -> None:
    with open("data/manifest.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["sha256", "split", "near_duplicate"])
        table.writeheader()
        table.writerows(rows)


AS_WITH_A_GPU = """
import multiprocessing, sys
whole = multiprocessing.get_context
def get_context(way=None):
    print("spawned", file=sys.stderr)
    return whole("spawn")
multiprocessing.get_context = get_context
"""


def run(python: str, root: Path, **env: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(root), str(Path.cwd())])  # a workspace may hold a sitecustomize.py
    whole = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "AUTOLORA_PROCESSES": "1"} | env
    return subprocess.run([python, "-m", "stages.evaluate"], capture_output=True, text=True, env=whole)


def outs() -> dict[str, bytes]:
    return {name: Path("reports", name).read_bytes() for name in OUTS} | {
        "adversarial.npz": Path("models/adversarial.npz").read_bytes()
    }


@pytest.mark.slow
def test_every_file_of_the_contract(workspace: Path, root: Path, python: str) -> None:
    ended = run(python, root)
    assert ended.returncode == 0, ended.stderr
    assert re.match(r"evaluate: .* % of 16 images stand ", ended.stdout)
    assert "evaluate: now the natural twin" in ended.stderr
    first, record = outs(), read_json("reports/robustness.json")
    flags = np.load("reports/robust_flags.npy")
    assert flags.dtype.names == ("id", "label", "clean", "robust", "baseline_clean", "baseline_robust")
    assert record["robust_accuracy"] == flags["robust"].mean()
    assert record["clean_accuracy"] == flags["clean"].mean() == 1
    assert record["baseline"]["clean_accuracy"] == flags["baseline_clean"].mean()
    assert record["alpha"] == 0.25
    assert record["data"]["n"] == 16
    assert [c["number"] for c in record["checks"]] == list(range(1, 17))
    assert not [c for c in record["checks"] if c["verdict"] == "fail"]
    assert {c["number"]: c["verdict"] for c in record["checks"]}[15] == "pass"
    only = (flags["robust"] & ~flags["baseline_robust"]).sum()
    assert record["mcnemar"]["only_model"] == only
    with np.load("models/adversarial.npz") as saved:
        net = load_classifier("models/merged.safetensors")
        assert saved["x"].dtype == np.uint8
        assert np.abs(saved["adversarial"] - saved["x"] / 255).max() <= 1 / 255 + 1e-6
        fooled = net(torch.from_numpy(saved["adversarial"])).argmax(1).numpy() != saved["y"]
        assert (fooled == saved["found"]).all()
        assert str(saved["threat"]) == "linf:1/255"
        assert (saved["ids"] == flags["id"]).all()
    with open("reports/eps_curve.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"robust", "natural"}
    assert Image.open("reports/adversarial.png").size[0] > 300
    assert json.loads(Path("reports/timing/evaluate.json").read_text())["attacks"]["robust"]
    for name in first:
        Path("models" if name.endswith("npz") else "reports", name).unlink()
    assert run(python, root, AUTOLORA_PROCESSES="2").returncode == 0  # goes on from what is known, in company
    assert outs() == first
    ended = run(python, root, AUTOLORA_PROCESSES="2", AUTOLORA_WORK="elsewhere")  # from nothing, in company
    assert ended.returncode == 0
    assert outs() == first
    Path("sitecustomize.py").write_text(AS_WITH_A_GPU)
    ended = run(sys.executable, root, AUTOLORA_PROCESSES="2", AUTOLORA_WORK="once more")
    assert ended.returncode == 0, ended.stderr
    assert "spawned" in ended.stderr
    assert outs() == first


@pytest.mark.slow
def test_other_weights_are_refused(workspace: Path, root: Path, python: str) -> None:
    path = Path("models/merged.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    ended = run(python, root)
    assert ended.returncode == MEND
    assert "sha256" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not Path("reports/robustness.json").exists()


def test_a_soup_is_followed_to_its_members(workspace: Path) -> None:
    notes = {"alpha": "0", "soup": "greedy", "members_sha256": "b c", "robust_sha256": "a" * 64}
    save_classifier(classifier(0), "models/merged.safetensors", **notes)
    record, images = read_json("models/finetuned/finetuned.json"), read_images(stage.TEST)
    runs = [{"weights_sha256": "b"}, {"weights_sha256": "c"}]
    write_json("models/finetuned/finetuned.json", record | {"members": {"runs": runs}})
    assert [check.verdict for check in stage.check_provenance(images)] == ["pass"] * 3
    mixed = {"alpha": "0", "mix": "nuts", "robust_sha256": "a" * 64}
    save_classifier(classifier(0), "models/merged.safetensors", **mixed)
    assert [check.verdict for check in stage.check_provenance(images)] == ["pass"] * 3
    save_classifier(classifier(0), "models/merged.safetensors", **notes)
    for others in (runs[:1], runs[::-1]):
        write_json("models/finetuned/finetuned.json", record | {"members": {"runs": others}})
        with pytest.raises(CheckFailed, match="members has the weights b c"):
            stage.check_provenance(images)


@pytest.mark.slow
def test_another_twin_and_a_leak_are_refused(workspace: Path, root: Path, python: str) -> None:
    write_json("models/finetuned/finetuned.json", {"weights_sha256": {"natural": "0" * 64}})
    write_manifest(
        [{"sha256": i.decode(), "split": "train", "near_duplicate": ""} for i in np.load("data/prepared/test/ids.npy")]
    )
    ended = run(python, root)
    assert ended.returncode == MEND
    assert "check 14" in ended.stderr
    assert "check 15" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_progress_is_of_this_code_and_this_kind_of_device(workspace: Path, mended, monkeypatch) -> None:
    def found() -> Path:
        with pytest.raises(StopIteration) as caught:
            stage.evaluate_network(load(EvaluateParams), read_images(stage.TEST), stage.MERGED)
        return caught.value.value

    def autoattack_of(model, images, threat, settings) -> None:
        raise StopIteration(settings.progress)

    monkeypatch.setattr(stage, "autoattack_of", autoattack_of)
    here = found()
    assert here == found()
    mended()
    other_code = found()
    monkeypatch.setattr(stage, "device_of", lambda model: torch.device("cuda"))
    assert len({here, other_code, found()}) == 3


def test_subset_is_fixed_and_even() -> None:
    labels = np.repeat([0, 1, 2], [50, 20, 3])
    images = TestImages(
        np.zeros((73, 3, 2, 2), np.uint8), labels, [hashlib.sha256(bytes([i])).hexdigest() for i in range(73)]
    )
    chosen = stratified(images, 15, 0)
    assert np.bincount(chosen.y).tolist() == [6, 6, 3]
    order = np.random.default_rng(0).permutation(73)
    mixed = stratified(images.only(order), 15, 0)
    assert mixed.ids == chosen.ids
    assert stratified(images, 15, 1).ids != chosen.ids
    assert set(stratified(images, 9, 0).ids) < set(chosen.ids)
    assert len(stratified(images, "all", 0).ids) == 73


def test_by_class() -> None:
    class Report:
        y = torch.tensor([0, 0, 1])
        clean = torch.tensor([True, True, False])
        robust = torch.tensor([True, False, False])

    assert by_class(Report(), ["a", "b", "c"]) == [
        {"class": "a", "n": 2, "clean": 1.0, "robust": 0.5},
        {"class": "b", "n": 1, "clean": 0.0, "robust": 0.0},
    ]


def test_progress_belongs_to_the_labels_too(workspace: Path) -> None:
    """A label of the test part that was corrected moves no image and no weight."""
    params = load(EvaluateParams)
    ids, x = [f"{i}" for i in range(4)], np.zeros((4, 3, 8, 8), np.uint8)
    folders = [
        stage.settings_of(
            params, params.threat, torch.device("cpu"), model="merged",
            images=TestImages(x, np.array(labels), ids), notes={"weights_sha256": "0"},
        ).progress
        for labels in ([0, 1, 2, 3], [0, 1, 2, 2], [0, 1, 2, 3])
    ]  # fmt: skip
    assert folders[0] == folders[2] != folders[1]
