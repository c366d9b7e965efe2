"""Each preset is a whole params.yaml: it passes the check, and says what the paper's protocol for its data set says."""

from __future__ import annotations

import pytest

from stages.common.params import check
from stages.dataset.sources import SOURCES
from tests.conftest import ROOT

PRESETS = sorted(p.stem for p in (ROOT / "presets").glob("*.yaml"))


def test_all_are_there():
    assert {"cifar10", "cifar100", "dtd", "dogs", "cub200", "caltech256", "folder", "trashnet"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_params_file(name):
    params = check(ROOT / f"presets/{name}.yaml")
    assert params.data.source == {"trashnet": "folder"}.get(name, name)
    assert params.data.source in SOURCES
    assert params.threat.as_record()["text"] == "linf:8/255"
    assert params.finetune.epochs == 60


@pytest.mark.parametrize("name", ["dtd", "dogs", "cub200", "caltech256"])
def test_large_images_are_stored_at_256_for_crops_of_224(name):
    data = check(ROOT / f"presets/{name}.yaml").data
    assert (data.stored_size, data.image_size) == (256, 224)


@pytest.mark.parametrize(
    ("name", "classes", "images"), [("dtd", 47, 80), ("dogs", 120, 100), ("cub200", 200, 30), ("caltech256", 257, 60)]
)
def test_the_validation_part_misses_no_class(name, classes, images):
    """Chance that some class has no image in it: below one in twenty (at the paper's 5 % it would be above a half)."""
    fraction = check(ROOT / f"presets/{name}.yaml").data.validation_fraction
    assert classes * (1 - fraction) ** images < 0.05
    assert classes * (1 - 0.05) ** images > 0.5
