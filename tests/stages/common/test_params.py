"""A params.yaml with a fault stops with one line that names the key, the value, and what is allowed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from autolora import Threat
from stages.common.params import Data, Evaluate, Finetune, Params, check
from stages.common.runner import StageError
from stages.common.views import VIEWS, MergeParams, declared, key_of, load
from tests.house.imports import ROOT
from tests.house.test_graph import STAGES


def changed(tmp_path, key, value):
    """The shipped params.yaml with one key set, as a file."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    *sections, last = key.split(".")
    place = tree
    for section in sections:
        place = place[section]
    place[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_the_shipped_file_is_right():
    params = check(ROOT / "params.yaml")
    assert params.finetune.method == "autolora"
    assert params.threat == Threat("linf", "16/255")


def test_what_params_allow_is_what_the_registries_hold():
    """Written out in stages.common.params, where the registries, and torch with them, would take seconds to import."""
    from autolora.attacks.autoattack import PRECISIONS as EVALUATED_IN
    from autolora.attacks.versions import VERSIONS
    from autolora.data.batches import AUGMENTATIONS
    from autolora.training.objectives import METHODS, REFERENCES
    from autolora.training.settings import ATTACKS, EPS_SCHEDULES, PRECISIONS, STARTS, TRAINS
    from stages.dataset.sources import SOURCES

    allowed = {name: set(get_args(field.annotation)) for name, field in Finetune.model_fields.items()}
    assert allowed["method"] == set(METHODS)
    assert allowed["reference"] == {"auto", *REFERENCES}
    assert allowed["augmentation"] == set(AUGMENTATIONS)
    for key, values in (("start", STARTS), ("attack", ATTACKS), ("trains", TRAINS), ("eps_schedule", EPS_SCHEDULES)):
        assert allowed[key] == set(values)
    assert allowed["precision"] == set(PRECISIONS)
    evaluation = {name: set(get_args(field.annotation)) for name, field in Evaluate.model_fields.items()}
    assert evaluation["precision"] == set(EVALUATED_IN)
    assert evaluation["version"] == set(VERSIONS)
    assert set(get_args(Data.model_fields["source"].annotation)) == set(SOURCES)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("finetune.epoch", 3, ["finetune.epoch", "unknown", "did you mean finetune.epochs?", "epochs, batch_size"]),
        ("finetun", {}, ["finetun", "unknown", "did you mean finetune?"]),
        ("register.gates.robst", 0.1, ["unknown key register.gates.robst: did you mean register.gates.robust?"]),
        ("export.wholly_other", 1, ["unknown key export.wholly_other: allowed are variants, "]),
        ("finetune.epochs", "many", ["finetune.epochs", "'many'", "integer"]),
        ("finetune.epochs", 0, ["finetune.epochs", "0", "greater than or equal to 1"]),
        ("finetune.channels_last", "yes", ["finetune.channels_last", "'yes'", "'auto'", "boolean"]),
        ("finetune.channels_last", 1, ["finetune.channels_last", "1", "'auto'", "boolean"]),
        ("finetune.method", "autolara", ["finetune.method", "'autolara'", "'vanilla'", "did you mean autolora?"]),
        ("threat.eps", 8, ["threat.eps", "8", "8/255"]),
        ("threat.eps", "8/0", ["threat.eps", "'8/0'", "fraction"]),
        ("threat.eps", -1, ["threat.eps", "-1", "larger than 0"]),
        ("threat.norm", "l7", ["threat.norm", "'l7'", "'linf'"]),
        ("data.test_fraction", 1.5, ["data.test_fraction", "1.5", "less than 1"]),
        ("merge.alpha", 2, ["merge.alpha", "2"]),
        ("evaluate.precision", "fast", ["evaluate.precision", "'fast'", "now called mixed"]),
        ("evaluate.precision", "half", ["evaluate.precision", "'half'", "'mixed'"]),
        ("evaluate.images", "most", ["evaluate.images", "'most'", "'all'"]),
        ("backbone.sha256", "abc", ["backbone.sha256", "'abc'"]),
        ("backbone.std", [0.5], ["backbone.mean is None, and backbone.std is [0.5]: they belong together"]),
        ("backbone.mean", [0.5], ["backbone.mean is [0.5], and backbone.std is None: they belong together"]),
        ("finetune.rate", float("inf"), ["finetune.rate", "finite"]),
        ("finetune.gamma", 2.0, ["finetune.gamma is 2.0", "method autolora has no second network"]),
        ("seed", 2**64, ["seed", "less than"]),
        ("seed", True, ["seed", "True", "integer"]),
    ],
)
def test_a_fault_is_named(tmp_path, key, value, words):
    with pytest.raises(StageError) as caught:
        check(changed(tmp_path, key, value))
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merge.soup": "greedy"}, "merge.soup is greedy, but finetune.members is 1: a soup needs at least 2"),
        (
            {"finetune.members": 2, "finetune.start": "robust_head"},
            "finetune.members is 2, but finetune.start is robust_head: each would have its own head to start from",
        ),
        (
            {"finetune.members": 2, "finetune.method": "madry", "finetune.trains": "blocks"},
            "finetune.members is 2, but finetune.trains is blocks: each would have its own blocks to start from",
        ),
        (
            {"merge.alpha": 0.5, "finetune.method": "vanilla"},
            "merge.alpha is 0.5, but finetune.method vanilla trains no branch: set merge.alpha to 0 or auto, or "
            "merge.toward to natural",
        ),
        (
            {"merge.toward": "critical", "finetune.method": "natural"},
            "merge.toward is critical, but finetune.method is natural: there is no robustness that a layer could keep",
        ),
        (
            {"merge.mix": "nuts", "finetune.method": "natural"},
            "merge.mix is nuts, but finetune.method is natural: two natural networks would be mixed",
        ),
        (
            {"merge.toward": "critical", "finetune.method": "linear"},
            "merge.toward is critical, but finetune.method is linear: there is no robustness that a layer could keep",
        ),
        (
            {"merge.mix": "nuts", "finetune.method": "linear"},
            "merge.mix is nuts, but finetune.method is linear: two natural networks would be mixed",
        ),
        (
            {"merge.mix": "nuts", "evaluate.precision": "mixed"},
            "merge.mix is nuts, but evaluate.precision is mixed: a mixture is attacked in float32",
        ),
        (
            {"merge.mix": "nuts", "export.variants": ["int8"]},
            "merge.mix is nuts, but export.variants is not empty: no attack fits a quantised mixture",
        ),
    ],
)
def test_values_that_exclude_each_other(tmp_path, changes, words):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in changes.items():
        section, name = key.split(".")
        tree[section][name] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(StageError) as caught:
        check(path)
    assert str(caught.value) == f"{path}: {words}"


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: 0\n")
    with pytest.raises(StageError, match="backbone is missing"):
        check(path)


def test_not_yaml(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("seed: [0\n")
    with pytest.raises(StageError, match="is not YAML"):
        check(path)


def test_a_key_that_stands_twice(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text() + "\nmerge: {alpha: 1.0}\n")
    with pytest.raises(StageError, match="the key merge stands there twice"):
        check(path)


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes("register: {name: Größe}".encode("latin-1"))
    with pytest.raises(StageError, match=r"params\.yaml is not text in UTF-8 .* save it as UTF-8"):
        check(path)


def test_a_stage_sees_only_what_it_declares():
    params = load(MergeParams, ROOT)
    assert params.merge.alpha == "auto"
    assert params.threat == Threat("linf", "16/255")
    assert not hasattr(params, "export")
    assert params.as_dict() == {
        "seed": 0,
        "threat": {"norm": "linf", "eps": "16/255"},
        "finetune": params.finetune.model_dump(),
        "merge": {"alpha": "auto", "toward": "branch", "soup": "none", "mix": "none"},
    }


@pytest.mark.parametrize("stage", VIEWS)
def test_a_view_is_what_dvc_yaml_declares(stage):
    """DVC tracks these keys: a stage that read another would not be run again when it changes."""
    assert set(declared(VIEWS[stage])) == set(STAGES[stage]["params"])
    view = load(VIEWS[stage], ROOT)
    assert set(view.as_dict()) == set(STAGES[stage]["params"])
    seen = set(vars(view.data).keys()) if hasattr(view, "data") else set()
    assert seen == {key.removeprefix("data.") for key in declared(VIEWS[stage]) if key.startswith("data.")}


def test_an_argument_of_the_library_is_named_by_its_key():
    assert key_of("finetune", "epochs") == "finetune.epochs"
    assert key_of("finetune", "weights") == "backbone.weights"
    assert key_of("evaluate", "eps") == "threat.eps"
    assert key_of("prepare", "image_size") == "data.image_size"
    assert key_of("merge", "something else") == "something else"


def test_parameters_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        check(ROOT / "params.yaml").finetune.epochs = 3


def defaults(model, prefix=""):
    """Every optional key with what it is where params.yaml does not say."""
    found = {}
    for name, entry in model.model_fields.items():
        if isinstance(entry.annotation, type) and issubclass(entry.annotation, BaseModel):
            found |= defaults(entry.annotation, f"{prefix}{name}.")
        elif not entry.is_required():
            found[prefix + name] = entry.default
    return found


def test_no_default_changes_unseen():
    """DVC tracks what params.yaml says, not what it leaves out: after a change every user's next run would say "up to
    date" and be wrong. Whoever changes a default writes it into the CHANGELOG, with the stage that must be forced."""
    assert defaults(Params) == {
        "backbone.mean": None,
        "backbone.network_size": None,
        "backbone.options": {},
        "backbone.sha256": None,
        "backbone.std": None,
        "backbone.stem": "timm",
        "backbone.trained_for": None,
        "data.on_bad_image": "stop",
        "data.path": "data/raw",
        "data.reference_manifest": None,
        "data.stored_size": None,
        "data.test_fraction": 0.2,
        "data.validation_fraction": 0.05,
        "evaluate.also": [],
        "evaluate.images": "all",
        "evaluate.precision": "float32",
        "evaluate.version": "standard",
        "export.check_images": 100,
        "export.input": "float32",
        "export.license": None,
        "export.max_robust_drop": 1.0,
        "export.variants": [],
        "finetune.attack": "auto",
        "finetune.augmentation": "auto",
        "finetune.average": None,
        "finetune.batch_size": 128,
        "finetune.channels_last": "auto",
        "finetune.compile": "auto",
        "finetune.decay": None,
        "finetune.epochs": 60,
        "finetune.gamma": 1.0,
        "finetune.members": 1,
        "finetune.method": "autolora",
        "finetune.precision": "auto",
        "finetune.rank": 8,
        "finetune.rate": None,
        "finetune.reference": "auto",
        "merge.alpha": "auto",
        "merge.mix": "none",
        "merge.soup": "none",
        "merge.toward": "branch",
        "register.gates.also": {},
        "register.gates.attack": "standard",
        "register.gates.clean": 0.0,
        "register.gates.images": 100,
        "register.gates.label_flips": 0,
        "register.gates.lower": 0.0,
        "register.gates.robust": 0.0,
        "register.gates.significance": 0.05,
        "register.gates.threat": None,
        "seed": 0,
        "finetune.eps_schedule": "auto",
        "finetune.recipe": None,
        "finetune.smoothing": 0.0,
        "finetune.start": "pretrained",
        "finetune.natural_teacher": None,
        "finetune.teacher": None,
        "finetune.trains": "all",
        "finetune.weight_attack": None,
    }


def written(tmp_path: Path, also: object, gates: object = None, **data: object) -> Path:
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["evaluate"]["also"], settings["register"]["gates"]["also"] = also, gates or {}
    settings["data"] |= data
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_other_threats_are_written_in_one_way(tmp_path):
    gates = {"l2:0.5": 0.4, "corruptions": 0.6, "union": 0}
    params = check(written(tmp_path, ["L2:1/2", "l1:12.0", "corruptions"], gates))
    assert params.evaluate.also == ["l2:0.5", "l1:12", "corruptions"]
    assert params.evaluate.also_threats == [Threat("l2", 0.5), Threat("l1", 12)]
    assert params.register.gates.also == gates


@pytest.mark.parametrize(
    ("also", "gates", "data", "said"),
    [
        (["l3:1"], {}, {}, r"evaluate\.also is \['l3:1'\]: 'l3:1' is neither a threat such as l2:0\.5 nor corruptions"),
        (["corruption"], {}, {}, "'corruption' is neither a threat"),
        (["linf:8"], {}, {}, "larger than the whole pixel range"),
        (["l2:0.5", "l2:1/2"], {}, {}, "l2:0.5 stands there twice"),
        (["corruptions", "corruptions"], {}, {}, "corruptions stands there twice"),
        (["linf:32/510"], {}, {}, "linf:16/255 is the threat itself"),
        (["corruptions"], {}, {"image_size": 12}, "at least 16 pixels a side, and data.image_size is 12"),
        ("l2:0.5", {}, {}, "evaluate.also is 'l2:0.5'"),
        ([0.5], {}, {}, "evaluate.also is 0.5"),
        (
            ["l2:0.5"],
            {"l1:12": 0.4},
            {},
            r"asks for l1:12, which is not measured: evaluate\.also is \['l2:0\.5'\]",
        ),
        (["corruptions"], {"union": 0.4}, {}, "gates.also asks for union, which is not measured"),
        (["l2:0.5"], {"l2:0.5": 40}, {}, r"register\.gates\.also is 40: it must be less than or equal to 1"),
        (["l2:0.5"], {"l2": 0.4}, {}, "'l2' is neither a threat"),
    ],
)
def test_other_threats_that_cannot_be_meant(tmp_path, also, gates, data, said):
    """One line, before anything runs."""
    with pytest.raises(StageError, match=said) as caught:
        check(written(tmp_path, also, gates, **data))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("none", "finetune.method is distill: teacher is none: give a classifier file, or first_pass"),
        ("models/pretrained/no.file", "finetune.teacher is models/pretrained/no.file: there is no such file"),
        ("README.md", "finetune.teacher is README.md: it lies outside models/pretrained/, where DVC does not see it"),
    ],
)
def test_a_teacher_is_a_file_that_dvc_sees(tmp_path, monkeypatch, teacher, said):
    monkeypatch.chdir(ROOT)
    path = written(tmp_path, [])
    settings = yaml.safe_load(path.read_text())
    settings["finetune"] |= {"method": "distill", "teacher": teacher, "natural_teacher": "twin"}
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(StageError, match=said) as caught:
        check(path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_file_reads_well(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("")
    with pytest.raises(StageError, match="the file is None"):
        check(path)


def test_params_travel_to_another_process():
    params = load(MergeParams, ROOT)
    assert pickle.loads(pickle.dumps(params)).as_dict() == params.as_dict()


def test_a_norm_that_nothing_trains_for_is_refused_before_anything_runs(tmp_path):
    file = written(tmp_path, [])
    settings = yaml.safe_load(file.read_text()) | {"threat": {"norm": "l1", "eps": 12}}
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(StageError, match=r"threat\.norm is l1: training knows linf and l2"):
        check(file)


@pytest.mark.parametrize("eps", ["1e400", "1/1e-400", "nan", "inf"])
def test_a_radius_beyond_all_numbers_is_said(tmp_path, eps):
    file = written(tmp_path, [])
    settings = yaml.safe_load(file.read_text())
    settings["threat"]["eps"] = eps
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(StageError, match=r"threat\.eps is "):
        check(file)


@pytest.mark.parametrize("alpha", [0, 0.0, "auto"])
def test_a_method_without_a_branch_may_say_that_it_ships_without_one(tmp_path, alpha):
    path = changed(tmp_path, "finetune.method", "vanilla")
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"merge": {"alpha": alpha, "toward": "branch"}}))
    assert check(path).merge.alpha == alpha


def test_images_may_be_stored_as_large_as_they_are_used(tmp_path):
    size = yaml.safe_load(changed(tmp_path, "seed", 0).read_text())["data"]["image_size"]
    assert check(changed(tmp_path, "data.stored_size", size)).data.stored_size == size


def test_corruptions_of_the_smallest_images_that_they_know(tmp_path):
    path = changed(tmp_path, "evaluate.also", ["corruptions"])
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(tree | {"data": tree["data"] | {"image_size": 16, "stored_size": "auto"}}))
    assert check(path).evaluate.also == ["corruptions"]
