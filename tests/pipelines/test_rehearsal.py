"""The verdict at the end of the rehearsal: equal weights, and what counts as a difference."""

from __future__ import annotations

import pytest

from tools import rehearse_failover as rehearsal


def test_weights_are_read_where_the_stage_leaves_them(tmp_path):
    (tmp_path / "models" / "finetuned").mkdir(parents=True)
    (tmp_path / "models" / "finetuned" / "robust.safetensors").write_bytes(b"abc")
    (tmp_path / "models" / "finetuned" / "finetuned.json").write_text("{}")
    # sha256 of "abc", as FIPS 180-2 gives it
    assert rehearsal.digests(tmp_path) == {
        "robust.safetensors": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "equal"),
    [
        ({"a": "1", "b": "2"}, {"a": "1", "b": "2"}, True),
        ({"a": "1", "b": "2"}, {"a": "1"}, True),  # a digest that was given is of one file
        ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, False),
        ({"a": "1"}, {"a": "1", "b": "2"}, False),
        ({"a": "1"}, {}, False),  # nothing to compare with is no agreement
    ],
)
def test_any_difference_is_told(ours, theirs, equal, capsys):
    assert rehearsal.compare(ours, theirs) is equal
    assert ("equal to the bit" in capsys.readouterr().out) is equal


def test_where_the_second_worker_went_on():
    log = (
        "13:23:50.6 | INFO | Task run 'dvc finetune' - > python -m stages.finetune\n"
        "13:24:07.5 | INFO | Task run 'dvc finetune' - autolora:  33%|###   | 20/60 [00:02<00:03]\n"
        "13:24:17.5 | INFO | Task run 'dvc finetune' - autolora:  50%|####  | 30/60 [00:12<00:03]\n"
    )
    assert rehearsal.first_step(log) == "autolora:  33%|###   | 20/60 [00:02<00:03]"
    assert rehearsal.first_step("") == ""
