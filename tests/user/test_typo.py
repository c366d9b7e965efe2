"""A typo anywhere in params.yaml is found by the first stage, before anything has run, with what was meant."""

from __future__ import annotations

import pytest
import yaml

SLIPS = {  # the shipped line, the slip, and what is said of it
    "finetune": ("  epochs: 20 ", "  epoch: 20 ", "unknown key finetune.epoch: did you mean finetune.epochs?"),
    "evaluate": ("version: standard", "version: standart", "evaluate.version is 'standart'"),
    "register": ("  gates:", "  gate:", "unknown key register.gate: did you mean register.gates?"),
    "a section": ("merge:\n", "merg:\n", "unknown key merg: did you mean merge?"),
}
LOST = {  # a backbone that is not there: the shipped words, the slip, and what is said of it
    "arch": ("arch: resnet10t ", "arch: resnet10tt ", "backbone.arch is 'resnet10tt': timm", "did you mean resnet10t"),
    "weights": (
        "resnet10s-cifar10-linf8.safetensors",
        "resnet10-cifar10-linf8.safetensors",
        "backbone.weights is 'models/pretrained/resnet10-cifar10-linf8.safetensors': there is no such file",
        "did you mean models/pretrained/resnet10s-cifar10-linf8.safetensors?",
    ),
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
@pytest.mark.parametrize("what", LOST)
def test_prepare_finds_a_backbone_that_is_not_there(clone, what):
    right, wrong, *said = LOST[what]
    clone.set_params(right, wrong)
    done = clone.run("python", "-m", "stages.prepare")
    assert done.returncode != 0
    assert all(part in done.stderr for part in said), done.stderr
    assert "Traceback" not in done.stderr
    assert not (clone.folder / "data/prepared").exists()


def test_what_timm_registers_is_read_from_its_source():
    """Oracle: timm itself, and names that are known to it in no such way are left to it."""
    import timm

    from stages.common.backbone import in_source_of_timm

    some = [*timm.list_models()[::150], *timm.list_pretrained("resnet*")[::40]]
    assert [name for name in some if not in_source_of_timm(name)] == []
    assert not any(
        map(in_source_of_timm, ("resnet50x", "resnet50.no_such_tag", "", "resnet50(", "torchvision:resnet50"))
    )


@pytest.mark.parametrize(
    ("weights", "sha256", "looked_at"),
    [
        ("hf:owner/name/robust.ckpt", None, True),  # it would stop in any case: now, and not after the images
        ("hf:owner/name/robust.ckpt", "0" * 64, False),
        ("https://example.org/robust.pt", "0" * 64, False),
        ("weights/robust.pt", "0" * 64, True),
        (None, None, False),
    ],
)
def test_weights_are_looked_at_first_where_that_costs_nothing(tmp_path, root, monkeypatch, weights, sha256, looked_at):
    from stages.common import backbone

    params = yaml.safe_load((root / "params.yaml").read_text())
    params["backbone"] |= {"weights": weights} | ({"sha256": sha256} if sha256 else {})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(backbone, "resolve_weights", lambda weights, sha256: asked.append(weights))
    backbone.refuse_unknown_backbone()
    assert asked == [weights] * looked_at


@pytest.mark.slow
def test_dvc_repro_ends_at_the_first_stage_with_the_line(clone):
    right, wrong, said = SLIPS["register"]
    clone.set_params(right, wrong)
    done = clone.run("dvc", "repro")
    assert done.returncode != 0
    assert said in done.stderr
    assert not (clone.folder / "data/manifest.csv").exists()
