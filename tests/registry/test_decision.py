"""The rules of promotion, each broken by one planted fault, and the paired test against scipy."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from scipy.stats import binomtest

from autolora.attacks.verdicts import NOT_RUN
from autolora.common.files import read_json, write_json
from pipelines.registry.gates import also_findings, champion_findings, gate_findings, paired
from stages.common.params import Gates
from stages.evidence.files import Evidence
from tests.registry.synthetic import add_also, make_run

GATES = Gates(clean=0.8, robust=0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return lambda name, **options: Evidence(make_run(folder / name, **options))


def refused(findings):
    return [f.what for f in findings if not f.passed]


def test_a_sound_version_passes_every_gate(runs):
    assert refused(gate_findings(runs("sound"), GATES)) == []


@pytest.mark.parametrize(
    ("options", "gate"),
    [
        ({"robust": 0.29}, "robust accuracy"),
        ({"clean": 0.79}, "clean accuracy"),
        ({"version": "fast"}, "attack"),
        ({"failed_check": 8}, "checks"),
        ({"flips": 1}, "parity"),
    ],
)
def test_each_gate_refuses_its_fault(runs, options, gate):
    assert refused(gate_findings(runs(gate, **options), GATES)) == [gate]


def test_unfit_data_is_refused(runs):
    evidence = runs("unfit")
    path = evidence.path("data/quality.json")
    write_json(path, read_json(path) | {"critical": ["3 of 9 images do not decode"]})
    assert refused(gate_findings(Evidence(evidence.folder), GATES)) == ["data"]


def test_plus_counts_as_standard(runs):
    assert refused(gate_findings(runs("plus", version="plus"), GATES)) == []
    assert refused(gate_findings(runs("strong", version="strong"), GATES)) == []


@pytest.fixture(scope="module")
def with_also(runs):
    return Evidence(add_also(runs("also").folder))


def test_gates_on_other_threats(with_also):
    """Against what the flags come to, threat by threat; what was not measured is refused."""
    flags = with_also.flags
    found = {
        "l2:0.5": flags["l2:0.5"].mean(),
        "corruptions": flags["corruptions"].mean() / 75,
        "union": (flags["l2:0.5"] & flags["robust"]).mean(),
    }
    assert refused(gate_findings(with_also, Gates(also=found))) == []
    for what, share in found.items():
        assert refused(gate_findings(with_also, Gates(also=found | {what: share + 0.001}))) == [what]
    assert refused(gate_findings(with_also, Gates(also={"l1:12": 0.0}))) == ["l1:12"]


def test_rows_that_the_flags_do_not_bear_out(with_also, tmp_path):
    record = read_json(with_also.path("reports/robustness.json"))
    for i, what in enumerate(("l2:0.5", "union", "corruptions")):
        changed = json.loads(json.dumps(record))
        changed["also"][i]["accuracy"] += 0.01
        assert refused(also_findings(changed, with_also.flags, {})) == [f"evidence, accuracy, {what}"]
    bare = with_also.flags[["id", "robust", "corruptions"]]
    assert refused(also_findings(record, bare, {"corruptions": 0.0})) == ["evidence, l2:0.5", "evidence, union"]


def test_better_is_promoted_worse_and_equal_are_not(runs):
    champion = runs("champion")
    for name, options, expected in (
        ("better", {"robust": 0.72, "seed": 1}, []),
        ("worse", {"robust": 0.5, "seed": 2}, ["robust, against the champion"]),
        ("equal", {"seed": 3}, ["robust, against the champion"]),
        ("dull", {"robust": 0.72, "clean": 0.8, "seed": 4}, ["clean, against the champion"]),
    ):
        findings, _ = champion_findings(runs(name, **options), champion, GATES)
        assert refused(findings) == expected, name


@pytest.mark.parametrize(
    ("options", "what"),
    [({"eps": 8}, "threat model"), ({"images": "others"}, "test set"), ({"version": "plus"}, "attack")],
)
def test_what_cannot_be_compared_is_refused_however_good(runs, options, what):
    findings, tests = champion_findings(runs(f"other {what}", robust=0.9, **options), runs("champion"), GATES)
    assert refused(findings) == [what]
    assert "not comparable" in findings[0].detail
    assert tests == {}


def test_the_p_value_is_the_exact_binomial_one_and_images_are_matched_by_id(runs):
    old, new = runs("champion").flags, runs("better", robust=0.72, seed=1).flags
    only_new, only_old = (new["robust"] & ~old["robust"]).sum(), (old["robust"] & ~new["robust"]).sum()
    expected = binomtest(int(only_new), int(only_new + only_old)).pvalue
    shuffled = np.random.default_rng(0).permutation(new)
    assert paired(shuffled, old, "robust").p == pytest.approx(expected)
    assert paired(shuffled, old, "robust") == paired(new, old, "robust")


def test_other_images_behind_the_same_hash_are_noticed(runs):
    champion, forged = runs("champion"), runs("forged", robust=0.72, images="others")
    path = forged.path("reports/robustness.json")
    record = read_json(path)
    record["data"]["ids_sha256"] = champion.robustness["data"]["ids_sha256"]
    write_json(path, record)
    findings, _ = champion_findings(Evidence(forged.folder), champion, GATES)
    assert refused(findings) == ["test set"]


def edited(runs, name, **changes):
    """The record edited by hand, its flags as they were."""
    evidence = runs(name)
    path = evidence.path("reports/robustness.json")
    record = read_json(path)
    for key, value in changes.items():
        record[key] = record[key] | value if isinstance(value, dict) else value
    write_json(path, record)
    return Evidence(evidence.folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"robust_accuracy": 0.99}, "evidence, robust accuracy"),
        ({"robust_accuracy": 7.5}, "evidence, robust accuracy"),
        ({"clean_accuracy": 0.95}, "evidence, clean accuracy"),
        ({"ci95": [0.9, 0.99]}, "evidence, interval"),
        ({"data": {"n": 10000}}, "evidence, number of images"),
        ({"data": {"ids_sha256": "0" * 64}}, "evidence, images"),
        ({"checks": []}, "checks"),
    ],
)
def test_a_record_that_its_flags_do_not_bear_out_is_refused(runs, change, what):
    evidence = edited(runs, f"edited {what} {len(str(change))}", **change)
    assert refused(gate_findings(evidence, GATES)) == [what]


@pytest.mark.parametrize(
    ("gates", "gate"),
    [
        ({"threat": "linf:17/255"}, "threat"),
        ({"threat": "l2:0.01"}, "threat"),
        ({"images": 201}, "images"),
        ({"lower": 0.55}, "lower end of the interval"),
        ({"threat": "linf:8/255", "images": 200, "lower": 0.5}, None),
    ],
)
def test_gates_on_threat_number_of_images_and_interval(runs, gates, gate):
    found = refused(gate_findings(runs("sound"), GATES.model_copy(update=gates)))
    assert found == ([gate] if gate else [])


def relabelled(evidence):
    path = evidence.path("reports/robust_flags.npy")
    flags = np.load(path)
    flags["label"][:3] += 1
    np.save(path, flags)


def with_bytes(evidence):
    path = evidence.path("reports/export.json")
    write_json(path, read_json(path) | {"input": "uint8"})


def renamed(evidence):
    path = evidence.path("models/export/model.onnx")
    model = onnx.load(path)
    note = next(one for one in model.metadata_props if one.key == "classes")
    note.value = json.dumps(["cat", *json.loads(note.value)[1:]])
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("change", "what", "said"),
    [
        (relabelled, "labels", "3 of 200 images have another label"),
        (with_bytes, "input", "uint8 pixels here, float32 of the champion"),
        (renamed, "classes", "class 0 is 'cat' here, '0' of the champion"),
    ],
)
def test_answers_to_another_question_are_not_compared(runs, change, what, said):
    """The same images, another label, another name or another input: however good, it is no better champion."""
    old, new = runs(f"before {what}", robust=0.5), runs(f"after {what}", robust=0.8)
    assert refused(champion_findings(new, old, GATES)[0]) == []
    change(new)
    (finding,) = champion_findings(Evidence(new.folder), old, GATES)[0]
    assert (finding.what, finding.passed) == (what, False)
    assert finding.detail.startswith(said)


def test_checks_that_nobody_made_did_not_pass(runs):
    evidence = runs("unchecked")
    path = evidence.path("reports/robustness.json")
    record = read_json(path)
    record["checks"] = [row | {"verdict": "not run", "detail": NOT_RUN} for row in record["checks"]]
    write_json(path, record)
    assert refused(gate_findings(Evidence(evidence.folder), GATES)) == ["checks"]


def test_the_very_threat_that_is_asked_for_is_enough(runs):
    assert refused(gate_findings(runs("sound"), GATES.model_copy(update={"threat": "linf:16/255"}))) == []


def test_labels_that_flip_within_rounding_are_no_fault_and_the_gate_may_allow_others(runs):
    evidence = runs("rounding", flips=2)
    record = read_json(evidence.path("reports/export.json"))
    record["parity"] |= {"label_flips": 2, "label_flips_beyond_noise": 0}
    write_json(evidence.path("reports/export.json"), record)
    assert refused(gate_findings(Evidence(evidence.folder), GATES)) == []
    two = runs("two", flips=2)
    assert refused(gate_findings(two, GATES.model_copy(update={"label_flips": 2}))) == []
    assert refused(gate_findings(two, GATES.model_copy(update={"label_flips": 1}))) == ["parity"]


def test_one_clean_image_less_is_chance(runs):
    findings, tests = champion_findings(runs("one less", robust=0.72, clean=0.895, seed=1), runs("champion"), GATES)
    assert tests["clean"].only_old == tests["clean"].only_new + 1
    assert refused(findings) == []


def test_how_sure_better_must_be_is_the_gates_to_say(runs):
    better, strict = runs("better", robust=0.72, seed=1), GATES.model_copy(update={"significance": 1e-12})
    findings, tests = champion_findings(better, runs("champion"), strict)
    assert 1e-12 < tests["robust"].p < 0.05
    assert refused(findings) == ["robust, against the champion"]


def test_a_record_may_differ_from_its_flags_by_rounding_alone(runs):
    assert refused(gate_findings(edited(runs, "rounded", robust_accuracy=0.6000004), GATES)) == []
    assert refused(gate_findings(edited(runs, "a tenth of a point", robust_accuracy=0.601), GATES)) == [
        "evidence, robust accuracy"
    ]


def test_what_counts_for_another_attack_than_standard_is_that_attack_alone(runs):
    for attack in ("rand", "strong"):
        assert refused(gate_findings(runs("sound"), GATES.model_copy(update={"attack": attack}))) == ["attack"]
