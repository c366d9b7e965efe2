"""The judgement: twelve planted faults are each found and named, what only warns does not stop, the record is fixed."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from stages.common.runner import StageError
from stages.dataset.splits import draw
from stages.prepare import COLUMNS
from stages.validate import validate
from tests.stages.dataset.conftest import Workspace
from tests.stages.dataset.pictures import encoded, fill, picture
from tests.stages.dataset.planted import plant


def judged(workspace: Workspace) -> dict:
    workspace.prepare()
    validate()
    return json.loads((workspace.folder / "data/quality.json").read_text())


def stopped(workspace: Workspace) -> str:
    workspace.prepare()
    with pytest.raises(StageError) as error:
        validate()
    assert not (workspace.folder / "data/quality.json").exists()
    return str(error.value)


def failed(quality: dict) -> dict[str, int]:
    return {name: check["failed"] for name, check in quality["checks"].items() if not check["passed"]}


def test_good_data_is_fit(workspace, capsys):
    fill(workspace.raw)
    quality = judged(workspace)
    said = capsys.readouterr().out
    assert said.startswith("validate: fit: 40 of 40 images in 2 classes are used (")
    assert len(said.splitlines()) == 1
    assert quality["verdict"] == "fit"
    assert quality["images"]["used"] == quality["images"]["found"] == 40
    assert sum(quality["images"][s] for s in ("train", "val", "test")) == 40
    assert quality["classes"] == 2
    assert (workspace.folder / "reports/data_docs/index.html").is_file()
    first = (workspace.folder / "data/quality.json").read_bytes()
    validate()
    assert (workspace.folder / "data/quality.json").read_bytes() == first


def test_twelve_planted_faults_are_each_found_and_named(workspace):
    fill(workspace.raw)
    planted = plant(workspace.raw)
    message = stopped(workspace)
    for path, words in planted.items():
        assert f"  {path}: {words}" in message
    offending = (workspace.folder / "reports/data_docs/offending.csv").read_text()
    report = json.loads((workspace.folder / "reports/data_docs/quality.json").read_text())
    assert report["verdict"] == "unfit"
    assert failed(report) == {"decoding": 4, "placement": 7, "two_labels": 2, "declared_classes": 1}
    assert all(path in offending for path in planted)


def test_skip_makes_them_warnings(workspace):
    fill(workspace.raw)
    plant(workspace.raw)
    workspace.set(on_bad_image="skip")
    quality = judged(workspace)
    assert quality["verdict"] == "fit, with warnings"
    assert failed(quality) == {"decoding": 4, "placement": 7, "two_labels": 2, "declared_classes": 1}
    assert quality["warnings"][0].startswith("4 of 52 cannot be decoded: cat/bomb.png")
    assert quality["images"]["used"] == 39


def test_two_splits(workspace):
    fill(workspace.raw / "train", images=40)
    fill(workspace.raw / "test", images=5, first=100)
    shutil.copy(workspace.raw / "test/cat/100.png", workspace.raw / "train/cat/leak.png")
    assert "train/cat/leak.png: two splits: the same image is in test as test/cat/100.png" in stopped(workspace)


def test_an_empty_split_stops_with_the_fraction_that_would_do(workspace):
    """And with that fraction it goes through."""
    fill(workspace.raw, images=15)
    workspace.set(validation_fraction=0.01)
    message = stopped(workspace)
    assert "cat (val): data.validation_fraction: 0." in message
    fraction = float(message.partition("data.validation_fraction: ")[2].split()[0])
    workspace.set(validation_fraction=fraction)
    assert judged(workspace)["checks"]["empty_classes"]["passed"]


def test_a_class_with_one_image(workspace):
    fill(workspace.raw)
    fill(workspace.raw, classes=["unicorn"], images=1, first=500)
    message = stopped(workspace)
    assert "unicorn (" in message
    assert "the class has 1 image(s), too few for 3 parts: add images, or remove it" in message
    assert "would do" not in message
    workspace.set(on_bad_image="skip")
    assert "set data.on_bad_image: skip" not in stopped(workspace)  # it is, and cannot help


def test_skip_is_not_advised_where_a_part_of_a_class_stays_empty(workspace):
    """Without the broken image the class with one image is as empty as before."""
    fill(workspace.raw)
    (workspace.raw / "cat/text.png").write_text("not a picture")
    assert "set data.on_bad_image: skip" in stopped(workspace)
    fill(workspace.raw, classes=["unicorn"], images=1, first=500)
    message = stopped(workspace)
    assert "cat/text.png: not an image" in message
    assert "unicorn (" in message
    assert "Mend the data and run it again." in message


def test_near_duplicates_across_given_splits(workspace):
    fill(workspace.raw / "train", images=40)
    fill(workspace.raw / "test", images=5, first=100)
    near = Image.open(workspace.raw / "train/cat/7.png")
    (workspace.raw / "test/cat/near.jpg").write_bytes(encoded(near, "JPEG", quality=90))
    quality = judged(workspace)
    assert quality["checks"]["near_duplicates"]["examples"] == ["test/cat/near.jpg: train/cat/7.png (train)"]
    assert failed(quality) == {"near_duplicates": 1}
    held_out = quality["images"]["val"] + quality["images"]["test"]
    assert quality["checks"]["near_duplicates"]["of"] == held_out < quality["images"]["used"]


def test_blank_small_and_long_images_warn(workspace, capsys):
    fill(workspace.raw)
    Image.new("RGB", (40, 40), "grey").save(workspace.raw / "cat/blank.png")
    picture(90, 12, 12).save(workspace.raw / "cat/small.png")
    picture(91, 400, 40).save(workspace.raw / "cat/long.png")
    quality = judged(workspace)
    assert failed(quality) == {"blank": 1, "size": 1, "aspect": 1}
    said = capsys.readouterr().out
    assert said.startswith("validate: fit, with warnings: 43 of 43 images")
    assert "  1 of 43 are blank: cat/blank.png" in said
    assert quality["checks"]["size"]["examples"] == ["cat/small.png: 12"]


def test_unbalanced_and_small_classes_warn(workspace):
    fill(workspace.raw, classes=["many"], images=150)
    fill(workspace.raw, classes=["few"], images=12, first=400)
    quality = judged(workspace)
    assert {"balance", "small_classes"} <= set(failed(quality))
    assert quality["checks"]["balance"]["examples"][0].startswith("few")


def test_classes_whose_names_read_the_same_warn(workspace, capsys):
    fill(workspace.raw, classes=("Cat", "dog", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"))
    fill(workspace.raw, classes=("cat", "cafe\N{COMBINING ACUTE ACCENT}"), first=200)
    check = judged(workspace)["checks"]["alike_classes"]
    assert (check["failed"], check["of"], check["passed"]) == (4, 5, False)
    assert {"Cat: 'cat'", "cat: 'Cat'"} < set(check["examples"])
    assert "4 of 5 classes have names that read the same" in capsys.readouterr().out


def test_drift_against_a_reference(workspace):
    """A class more, a class less, and all images darker."""
    fill(workspace.raw, classes=("cat", "dog"), images=40)
    workspace.prepare()
    shutil.copy("data/manifest.csv", "reference.csv")
    workspace.set(reference_manifest="reference.csv")
    assert judged(workspace)["verdict"] == "fit"  # nothing has drifted from itself
    shutil.rmtree(workspace.raw / "dog")
    fill(workspace.raw, classes=["emu"], images=40, first=700)
    for file in workspace.raw.glob("*/*.png"):
        Image.fromarray((np.asarray(Image.open(file)) * 0.3).astype(np.uint8)).save(file)
    quality = judged(workspace)
    assert {"new_classes", "vanished_classes", "drift"} <= set(failed(quality))
    assert quality["checks"]["new_classes"]["examples"] == ["emu: 0"]
    assert quality["checks"]["vanished_classes"]["examples"] == ["dog: 0"]
    assert any(line.startswith("mean: ") for line in quality["checks"]["drift"]["examples"])


def test_a_reference_that_is_not_there(workspace):
    fill(workspace.raw)
    workspace.set(reference_manifest="nowhere.csv")
    workspace.prepare()
    with pytest.raises(StageError, match=r"nowhere\.csv: there is no such file"):
        validate()


def test_odd_class_names_stay_what_they_are(workspace):
    fill(workspace.raw, classes=["NA", "None", "007", "a,b", 'say "x"'], images=20)
    quality = judged(workspace)
    assert quality["verdict"] == "fit"
    assert json.loads((workspace.folder / "data/prepared/classes.json").read_text()) == [
        "007", "NA", "None", "a,b", 'say "x"',
    ]  # fmt: skip


def write_manifest(classes: int, images: int) -> None:
    """As prepare would write it: so many images of each class, drawn into the three parts."""
    fixed = {"phash": "0" * 64, "width": 8, "height": 8, "mode": "L", "mean": 127.5, "std": 70.0, "bytes": 64}
    with open("data/manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        for number in range(classes * images):
            sha256 = hashlib.sha256(str(number).encode()).hexdigest()
            place = {"path": f"x#{number}", "sha256": sha256, "label": str(number // images)}
            writer.writerow(fixed | place | {"split": draw(0, sha256, None, {None}, 0.2, 0.2)})


@pytest.mark.slow
def test_ten_thousand_classes(workspace):
    """Stops (most are empty in a part), names some, and what it writes and says stays small."""
    write_manifest(classes=10_000, images=3)
    with pytest.raises(StageError) as error:
        validate()
    assert "... and " in str(error.value)
    assert len(str(error.value).splitlines()) < 120
    report = workspace.folder / "reports/data_docs/quality.json"
    assert report.stat().st_size < 20_000
    assert json.loads(report.read_text())["classes"] == 10_000


@pytest.mark.slow
def test_trashnet_and_its_three_pairs(workspace, shared):
    workspace.set(path=str(shared / "data/trashnet"), test_fraction=0.2, validation_fraction=0.05)
    message = stopped(workspace)
    for a, b in (("glass/glass115", "metal/metal91"), ("glass/glass176", "plastic/plastic152"),
                 ("glass/glass389", "plastic/plastic332")):  # fmt: skip
        assert f"  {a}.jpg: two labels: the same image is {b.split('/')[0]} as {b}.jpg" in message
    report = json.loads((workspace.folder / "reports/data_docs/quality.json").read_text())
    assert report["images"] == {"found": 2527, "used": 2521, "train": 1885, "val": 107, "test": 529}
    assert failed(report).pop("two_labels") == 6


@pytest.mark.slow
def test_trashnet_with_twelve_planted_faults(workspace, shared):
    for name in ("glass", "metal", "paper"):
        shutil.copytree(shared / "data/trashnet" / name, workspace.raw / name, copy_function=shutil.copyfile)
        (workspace.raw / name).chmod(0o755)
    fill(workspace.raw)  # cats and dogs among the waste: where the faults are planted
    planted = plant(workspace.raw)
    message = stopped(workspace)
    for path, words in planted.items():
        assert f"  {path}: {words}" in message
