"""`dvc repro validate` as a user runs it, on TrashNet with its three pairs and twelve planted faults."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.stages.dataset.pictures import fill
from tests.stages.dataset.planted import plant
from tests.user.clone import Clone


@pytest.fixture
def clone(tmp_path, root, python) -> Clone:
    return Clone(tmp_path, root, python)


def set_data(folder: Path, **data) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["data"] |= data
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.slow
def test_twelve_faults_in_trashnet(clone, shared):
    """Two faults DVC meets first, when it hashes data.path, and stops: a link to itself, a name that is not UTF-8."""
    checkout, raw = clone.folder, clone.folder / "data/raw"
    shutil.copytree(shared / "data/trashnet", raw, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for folder in raw.glob("*/"):
        folder.chmod(0o755)
    raw.chmod(0o755)
    fill(raw, images=60)  # cats and dogs among the waste: among them the faults are planted
    planted = plant(raw)
    (raw / "cat/itself.png").unlink()
    os.unlink(os.fsencode(raw) + b"/cat/caf\xe9.png")
    for path in ("cat/itself.png", "cat/caf\\xe9.png"):
        del planted[path]
    shutil.copy(raw / "cat/3.png", raw / "cat/again.png")
    fill(raw, classes=["unicorn"], images=1, first=900)
    set_data(checkout, source="folder", path="data/raw", image_size=32)
    stopped = clone.run("dvc", "repro", "validate")
    assert stopped.returncode != 0
    assert "Traceback" not in stopped.stderr
    with open(checkout / "reports/data_docs/offending.csv", newline="", encoding="utf-8") as file:
        offending = {(row["what"], row["detail"].partition(":")[0]) for row in csv.DictReader(file)}
    assert {(path, words.partition(":")[0]) for path, words in planted.items()} <= offending  # ten
    assert ("cat/again.png", "repeated") in offending
    assert any(what.startswith("unicorn (") for what, _ in offending)
    pairs = ["glass/glass115", "metal/metal91", "glass/glass176", "plastic/plastic152", "glass/glass389"]
    for name in [*pairs, "plastic/plastic332"]:  # TrashNet's own
        assert (f"{name}.jpg", "two labels") in offending
        assert f"{name}.jpg: two labels: " in stopped.stderr
    shutil.rmtree(raw / "unicorn")
    set_data(checkout, on_bad_image="skip")
    going_on = clone.run("dvc", "repro", "validate")
    assert going_on.returncode == 0, going_on.stderr
    assert "fit, with warnings" in (checkout / "data/quality.json").read_text()


@pytest.mark.slow
def test_a_name_that_is_not_utf8_stops_dvc_and_the_two_commands_of_the_docs_name_it(clone):
    checkout = clone.folder
    fill(checkout / "data/raw", images=12)
    os.link(checkout / "data/raw/cat/0.png", os.fsencode(checkout) + b"/data/raw/cat/\xff.png")
    set_data(checkout, source="folder", path="data/raw", image_size=16)
    dvc = clone.run("dvc", "repro", "validate")
    assert dvc.returncode != 0
    assert "surrogates not allowed" in dvc.stderr  # what docs/data.md quotes
    for stage in ("prepare", "validate"):
        last = clone.run("python", "-m", f"stages.{stage}")
    assert last.returncode != 0
    assert "  cat/\\xff.png: name: not plain text in UTF-8 on one line; rename it" in last.stderr
