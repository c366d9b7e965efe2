"""`python -m stages.estimate`, and the line with which a long stage begins: how long, before it is too late to ask."""

from __future__ import annotations

import re

import pytest

from tests.house.test_graph import STAGES

TIME = r"(\d+ h )?\d+ (s|min)"  # a slow machine needs more than an hour


def table(said: str) -> dict[str, str]:
    """The first word of each line, and what stands behind it."""
    lines = [line.partition(" ") for line in said.splitlines()]
    return {head: rest.strip() for head, _, rest in lines}


def test_the_whole_pipeline_before_anything_has_run(untouched):
    done = untouched.run("python", "-m", "stages.estimate")
    assert done.returncode == 0, done.stderr
    rows = table(done.stdout)
    assert set(STAGES) <= set(rows)
    for row in (*STAGES, "all"):
        assert re.match(r"\d+ (s|min|h)", rows[row]), row
    assert re.match(r"\d+ MB|\d\.\d GB", rows["memory"])
    assert re.match(r"[\d.]+ MB", rows["disk"])
    assert done.stdout.startswith(
        "1,797 images of 10 classes: about 1,294 to train on, 144 for validation, 359 for test"
    )
    assert "on 100 images, of two networks" in rows["evaluate"]
    assert "What would make it shorter:" in done.stdout
    assert re.search(r"finetune\.epochs: 10 \(it is 20\) +" + TIME + " less", done.stdout)
    assert untouched.changed() == ""


@pytest.mark.slow
def test_a_set_that_must_be_downloaded_first_is_estimated_from_its_published_counts(untouched):
    own = (untouched.folder / "params.yaml").read_text(encoding="utf-8").replace("source: digits", "source: cifar10")
    (untouched.home / "cifar10.yaml").write_text(own, encoding="utf-8")
    done = untouched.run("python", "-m", "stages.estimate", str(untouched.home / "cifar10.yaml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("60,000 images of 10 classes: ")
    assert "10,000 for test" in done.stdout
    assert "the images are not here yet" in table(done.stdout)["prepare"]
    assert untouched.changed() == ""


def test_a_file_that_is_wrong_is_refused_in_one_line(untouched):
    (untouched.home / "wrong.yaml").write_text("seed: 0\n")
    done = untouched.run("python", "-m", "stages.estimate", str(untouched.home / "wrong.yaml"))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "backbone is missing" in done.stderr


@pytest.mark.slow
def test_fine_tuning_begins_with_how_long_it_will_take(clone):
    clone.set_params("  epochs: 20 ", "  epochs: 400 ")
    for stage in ("prepare", "validate"):
        assert clone.run("python", "-m", f"stages.{stage}").returncode == 0
    said = clone.first_line("python", "-m", "stages.finetune")
    assert re.fullmatch(
        rf"finetune: at most about {TIME} in all, where nothing else runs: 400 epochs of 1,\d+ images, "
        rf"{TIME} of it for the naturally tuned twin\n",
        said,
    ), said
