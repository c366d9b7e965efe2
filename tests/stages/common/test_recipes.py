"""finetune.recipe: a file of presets/recipes fills in what params.yaml leaves at its default."""

from __future__ import annotations

import re

import pytest
import yaml

from autolora.data.batches import AUGMENTATIONS
from autolora.training.objectives import METHODS, REFERENCES
from autolora.training.settings import ATTACKS, EPS_SCHEDULES, STARTS, TRAINS
from pipelines.sweeps import grid
from stages.common import recipes
from stages.common.errors import StageError
from stages.common.params import Finetune, Merge, check
from stages.finetune import AXES, recipe_of, say_recipe
from tests.house.imports import ROOT
from tools import draw_axes


def with_finetune(tmp_path, merge=None, **keys):
    """The shipped params.yaml with other keys of finetune and merge, checked."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["finetune"] |= keys
    tree["merge"] |= merge or {}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return check(path)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_right_and_is_what_its_file_says(tmp_path, name):
    params = with_finetune(tmp_path, recipe=name, epochs=60, augmentation="auto")
    for section, values in recipes.recipe(name).items():
        for key, value in values.items():
            assert getattr(getattr(params, section), key) == value, f"{section}.{key}"
    first = (recipes.FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert re.match("# [A-Z]", first)  # what it is, and whose


def test_a_key_that_is_set_stands_and_a_default_is_the_recipes(tmp_path):
    params = with_finetune(tmp_path, recipe="awp2020", epochs=20, weight_attack=0.01)
    assert params.finetune.epochs == 20
    assert params.finetune.weight_attack == 0.01
    assert params.finetune.method == "vanilla"  # params.yaml says autolora, which is the default
    assert with_finetune(tmp_path, recipe="awp2020", method="arow").finetune.method == "arow"
    assert with_finetune(tmp_path, {"toward": "critical"}, recipe="wise-ft").merge.toward == "critical"


def test_nothing_in_words_is_a_default_too(tmp_path):
    assert with_finetune(tmp_path, recipe="rslad2021", teacher="none").finetune.teacher == "first_pass"


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_that_names_the_rule_of_the_rate_sets_it(name):
    """`auto` would be the published rule from 20,000 training images on."""
    text = (ROOT / "presets/recipes" / f"{name}.yaml").read_text()
    if "`best`" in text or "finds itself" in text:
        assert recipes.recipe(name)["finetune"]["reference"] == "best"


def test_no_two_recipes_are_the_same():
    said = [
        repr(sorted((section, sorted(values.items())) for section, values in recipes.recipe(name).items()))
        for name in recipes.names()
    ]
    assert len(set(said)) == len(said)


def test_what_a_recipe_sets_is_said(tmp_path, capsys):
    """Also where params.yaml spells a default out, which cannot be told from one that it leaves alone."""
    say_recipe(with_finetune(tmp_path, recipe="jeddi2020", epochs=60, augmentation="auto").finetune)
    said = capsys.readouterr().err
    assert "finetune: recipe jeddi2020: " in said
    assert "epochs 10" in said
    assert "but" not in said
    say_recipe(with_finetune(tmp_path, recipe="jeddi2020", epochs=20, augmentation="auto").finetune)
    assert "; but epochs 20, as params.yaml says" in capsys.readouterr().err


def test_what_the_file_has_in_place_of_the_recipe_s_own_is_told(tmp_path):
    """The shipped params.yaml is for digits: no mirror, 20 epochs."""
    section = with_finetune(tmp_path, recipe="iat2019").finetune
    assert section.augmentation == "crop"
    assert recipe_of(section)["but"] == {"augmentation": "crop", "epochs": 20}
    assert "but" not in recipe_of(with_finetune(tmp_path, recipe="iat2019", epochs=60, augmentation="auto").finetune)
    assert recipe_of(with_finetune(tmp_path, recipe="none").finetune) == {}


@pytest.mark.parametrize("preset", sorted(path.stem for path in (ROOT / "presets").glob("*.yaml")))
@pytest.mark.parametrize("name", recipes.names())
def test_a_preset_leaves_a_recipe_its_own(tmp_path, preset, name):
    """All but the number of epochs, and augmentations where the images themselves want another."""
    tree = yaml.safe_load((ROOT / f"presets/{preset}.yaml").read_text())
    tree["finetune"]["recipe"] = name
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    assert set(recipe_of(check(tmp_path / "params.yaml").finetune).get("but", {})) <= {"epochs"}


@pytest.mark.parametrize("cell", grid.load("recipes", ROOT).cells, ids=lambda cell: cell.axes["recipe"])
def test_the_sweep_of_recipes_compares_what_they_say(tmp_path, cell):
    given = cell.overrides.items()
    keys = {key.removeprefix("finetune."): value for key, value in given if key.startswith("finetune.")}
    section = with_finetune(tmp_path, **keys).finetune
    assert set(recipe_of(section).get("but", {})) <= {
        "epochs",
        *(["augmentation"] if cell.axes["recipe"] == "auto" else []),
    }


def test_sections_of_another_kind_are_refused_as_without_a_recipe(tmp_path):
    for merge in ("yes", [1]):
        tree = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"merge": merge}
        tree["finetune"]["recipe"] = "auto"
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
        with pytest.raises(StageError, match=r"merge is .*dictionary"):
            check(tmp_path / "params.yaml")


def test_none_is_no_recipe(tmp_path):
    params = with_finetune(tmp_path, recipe="none")
    assert params.finetune.recipe is None
    assert params.finetune.method == "autolora"


def test_one_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(StageError, match=r"finetune.recipe is 'awp2021': did you mean awp2020\? there are arow2023, "):
        with_finetune(tmp_path, recipe="awp2021")


def test_a_file_that_says_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    (tmp_path / "mine.yaml").write_text("evaluate: {version: fast}")
    with pytest.raises(StageError, match=r"presets/recipes/mine.yaml: expected the sections finetune and merge"):
        with_finetune(tmp_path, recipe="mine")
    (tmp_path / "mine.yaml").write_text("finetune: {method: autolore}")
    with pytest.raises(StageError, match=r"finetune.method is 'autolore'.*did you mean autolora"):
        with_finetune(tmp_path, recipe="mine")


def test_axes_that_exclude_each_other_are_refused_with_the_file(tmp_path):
    with pytest.raises(StageError, match=r"finetune.trains is lora: method autolora says itself what is trained"):
        with_finetune(tmp_path, trains="lora")
    with pytest.raises(StageError, match=r"finetune.attack is single: method natural has no attack"):
        with_finetune(tmp_path, recipe="elle2024", method="natural")


def test_the_picture_of_the_axes_is_of_today():
    picture = (ROOT / "docs/axes.svg").read_text()
    assert picture == draw_axes.draw(), "python -m tools.draw_axes"
    said = re.search(r'aria-label="The axes of fine-tuning: ([^"]*)"', picture)
    assert said
    shown = {key: values.split(", ") for key, _, values in (axis.partition(": ") for axis in said[1].split("; "))}
    assert {f"finetune.{key}" for key in AXES} <= shown.keys()
    for key, known in {
        "method": METHODS, "start": STARTS, "attack": ATTACKS, "trains": TRAINS, "eps_schedule": EPS_SCHEDULES,
        "augmentation": AUGMENTATIONS, "reference": ("auto", *REFERENCES),
    }.items():  # fmt: skip
        assert set(shown[f"finetune.{key}"]) == set(known), key
    for key in ("soup", "toward", "mix"):
        assert all(Merge.model_validate({key: value}) for value in shown[f"merge.{key}"])
    chips = re.findall(r'<text class="v"[^>]*>([^<]*)</text>', picture)
    assert chips == [word for axes in draw_axes.COLUMNS.values() for axis in axes for word in draw_axes.values(axis)]


def test_the_page_lists_what_there_is():
    page = (ROOT / "docs/recipes.md").read_text()
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", page.partition("## The recipes")[2], re.M)
    assert sorted(listed) == recipes.names()
    axes = page.partition("## The recipes")[0]
    for key in ("method", "start", "attack", "trains", "weight_attack", "smoothing", "eps_schedule", "reference"):
        assert f"`finetune.{key}`" in axes
    sweep = yaml.safe_load((ROOT / "presets/sweeps/recipes.yaml").read_text())
    assert sorted(sweep["grid"]["recipe"]) == recipes.names()
    assert {*recipes.SECTIONS} == {"finetune", "merge"}
    assert Finetune.model_fields.keys() >= {"recipe"}
    assert "toward" in Merge.model_fields
