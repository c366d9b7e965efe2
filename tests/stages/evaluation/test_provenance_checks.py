"""What lies around an evaluation: each fault planted, each caught."""

from __future__ import annotations

from stages.evaluation.provenance_checks import nothing_chosen, splits_apart, weights_match


def test_a_choice_on_the_test_part() -> None:
    stages = {
        "prepare": {"outs": ["data/prepared"]},
        "finetune": {"deps": ["data/prepared/train"], "outs": ["models/finetuned"]},
        "merge": {"deps": ["data/prepared/val", "models/finetuned/robust"], "outs": [{"models/m": {"cache": False}}]},
        "evaluate": {"deps": ["data/prepared/test", "models/m"]},
    }
    assert nothing_chosen(stages).verdict == "pass"
    assert nothing_chosen({}).verdict == "fail"
    pick = {"deps": ["data/prepared/test"], "outs": ["models/picked"]}  # another stage that chooses
    assert nothing_chosen(stages | {"pick": pick}).verdict == "pass"  # for nobody
    merge = stages["merge"] | {"deps": ["models/picked", "models/finetuned"]}
    assert nothing_chosen(stages | {"pick": pick, "merge": merge}).verdict == "fail"
    inside = "data/prepared/test/images.npy"

    def merging(dep):
        return stages | {"merge": stages["merge"] | {"deps": [dep, "models/finetuned"]}}

    for dep in ("data/prepared/test", "data/prepared/", "data", inside, {"data/prepared/test": {"cache": False}}):
        assert nothing_chosen(merging(dep)).verdict == "fail"
    assert nothing_chosen(merging("data/prepared/test_images")).verdict == "pass"


def test_other_weights() -> None:
    assert weights_match({"natural": "a" * 64}, {"natural": "a" * 64, "branch": "c" * 64}).verdict == "pass"
    assert weights_match({"natural": "a" * 64}, {"natural": "b" * 64}).verdict == "fail"
    assert weights_match({"natural": "a" * 64}, {}).verdict == "fail"  # nobody wrote down what was trained


def test_leakage_between_splits() -> None:
    rows = [
        {"sha256": "a", "split": "train", "near_duplicate": ""},
        {"sha256": "b", "split": "test", "near_duplicate": ""},
        {"sha256": "c", "split": "test", "near_duplicate": "a"},
        {"sha256": "d", "split": "val", "near_duplicate": ""},
    ]
    assert splits_apart(rows, ["b"]).verdict == "pass"
    assert splits_apart(rows, ["b", "c"]).verdict == "warn"
    assert splits_apart(rows, ["a", "b"]).verdict == "fail"
    assert splits_apart(rows, ["b", "d"]).verdict == "fail"


def test_a_copy_that_prepare_left_out_is_in_no_split() -> None:
    rows = [
        {"sha256": "a", "split": "train", "near_duplicate": "", "reason": "two splits: the same image is in test"},
        {"sha256": "a", "split": "test", "near_duplicate": "", "reason": ""},
    ]
    assert splits_apart(rows, ["a"]).verdict == "pass"
    rows[0]["reason"] = ""
    assert splits_apart(rows, ["a"]).verdict == "fail"
