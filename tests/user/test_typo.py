"""A typo anywhere in params.yaml is found by the first stage, before anything has run, with what was meant."""

from __future__ import annotations

import pytest

SLIPS = {  # the shipped line, the slip, and what is said of it
    "finetune": ("  epochs: 20 ", "  epoch: 20 ", "unknown key finetune.epoch: did you mean finetune.epochs?"),
    "evaluate": ("version: standard", "version: standart", "evaluate.version is 'standart'"),
    "register": ("  gates:", "  gate:", "unknown key register.gate: did you mean register.gates?"),
    "a section": ("merge:\n", "merg:\n", "unknown key merg: did you mean merge?"),
}


@pytest.mark.parametrize("where", SLIPS)
def test_prepare_finds_a_typo_of_any_section(clone, where):
    right, wrong, said = SLIPS[where]
    clone.set_params(right, wrong)
    done = clone.run("python", "-m", "stages.prepare")
    assert done.returncode != 0
    assert f"prepare: params.yaml: {said}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "data/prepared").exists()


@pytest.mark.slow
def test_dvc_repro_ends_at_the_first_stage_with_the_line(clone):
    right, wrong, said = SLIPS["register"]
    clone.set_params(right, wrong)
    done = clone.run("dvc", "repro")
    assert done.returncode != 0
    assert said in done.stderr
    assert not (clone.folder / "data/manifest.csv").exists()
