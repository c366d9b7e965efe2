"""The merge stage: both directions of the dial, the chosen network, and no point measured twice."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from autolora.backbones.classifier import load_classifier, read_notes, save_classifier
from autolora.threat import Threat
from autolora.training.branch import Branch, load_deltas, save_branch
from autolora.training.criticality import Critical
from autolora.training.dial import interpolate
from autolora.training.soup import agreement
from stages.common.runner import StageError, work_root
from stages.merging.layer import tuned_layer
from stages.merging.validation import Validation
from tests.export.nets import tiny


@pytest.fixture
def finetuned(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with what `finetune` and `prepare` leave, and a function that runs `merge` under changed params."""
    monkeypatch.chdir(tmp_path)
    robust, natural = tiny(0), tiny(1)
    save_classifier(robust, "models/finetuned/robust.safetensors")
    save_classifier(natural, "models/finetuned/natural.safetensors")
    branch = Branch([("body.block.0", robust.body.block[0])], generator=torch.Generator().manual_seed(0))
    nn.init.normal_(branch.B[0], std=0.2)
    save_branch(branch, "models/finetuned/branch.safetensors")
    rng = np.random.default_rng(0)
    for part in ("val", "train"):
        Path(f"data/prepared/{part}").mkdir(parents=True)
        np.save(f"data/prepared/{part}/images.npy", rng.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8))
        np.save(f"data/prepared/{part}/labels.npy", rng.integers(0, 10, 30))
        np.save(f"data/prepared/{part}/ids.npy", np.array([f"{part}{i}" for i in range(30)], "S64"))
    Path("dvc.yaml").write_text((root / "dvc.yaml").read_text())

    def run(**merge: object) -> None:
        from stages.merge import merge as stage

        params = yaml.safe_load((root / "params.yaml").read_text())
        params["finetune"]["members"] = len(list(Path("models/finetuned/members").glob("?.safetensors"))) or 1
        Path("params.yaml").write_text(yaml.safe_dump(params | {"merge": merge}))
        stage()

    return run


def rows() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("reports/alpha_curve.csv").open()))


def test_stage_writes_both_directions_and_the_chosen_network(finetuned) -> None:
    finetuned(alpha=0.6, toward="natural")
    curve = rows()
    assert [(r["toward"], r["alpha"]) for r in curve if r["chosen"] == "1"] == [("natural", "0.6")]
    assert {r["toward"] for r in curve} == {"branch", "natural"}
    assert len(curve) == 11
    merged = load_classifier("models/merged.safetensors")
    expected = interpolate(tiny(0), tiny(1), 0.6)
    assert torch.equal(merged.body.fc.weight, expected.body.fc.weight)
    notes = read_notes("models/merged.safetensors")
    assert (notes["alpha"], notes["toward"], notes["threat"]) == ("0.6", "natural", "linf:16/255")
    chosen = next(r for r in curve if r["chosen"] == "1")
    assert (notes["val_clean"], notes["val_robust"]) == (chosen["clean"], chosen["robust"])


def test_stage_is_the_same_bytes_twice_and_measures_no_point_twice(finetuned, monkeypatch: pytest.MonkeyPatch) -> None:
    finetuned(alpha="auto", toward="branch")
    first = {p: Path(p).read_bytes() for p in ("models/merged.safetensors", "reports/alpha_curve.csv")}
    monkeypatch.setattr(
        "stages.merging.validation.judge", lambda *_, **__: pytest.fail("this point was measured before")
    )
    finetuned(alpha="auto", toward="branch")
    assert all(Path(p).read_bytes() == content for p, content in first.items())


def test_stage_without_a_branch(finetuned) -> None:
    save_branch(None, "models/finetuned/branch.safetensors")
    with pytest.raises(StageError, match=r"merge.alpha is 0.5.*trained none"):
        finetuned(alpha=0.5, toward="branch")
    finetuned(alpha="auto", toward="branch")
    assert [r["alpha"] for r in rows() if r["toward"] == "branch"] == ["0"]


def test_flags_found_by_other_code_are_not_gone_on_from(finetuned, mended) -> None:
    for _ in range(2):
        finetuned(alpha=0, toward="natural")
    assert len(list(work_root().glob("merge/*"))) == 1
    mended()
    finetuned(alpha=0, toward="natural")
    assert len(list(work_root().glob("merge/*"))) == 2


def test_what_was_found_under_another_threat_is_not_gone_on_from(finetuned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a point of the dial nor which layer is the least critical one; that depends on seed and crops, too."""
    points, layers = [Validation(Threat("linf", eps)) for eps in ("8/255", "4/255")], []

    def found(_: object, train: tuple[np.ndarray, torch.Tensor], *__: object, folder: Path, **___: object) -> Critical:
        assert np.array_equal(train[0], np.load("data/prepared/train/images.npy"))  # validation's have no part in it
        layers.append(folder)
        return Critical(tiny(0), "body.fc", {"body.fc": 0.0})

    monkeypatch.setattr("stages.merging.layer.critical", found)
    asked = [(points[0], 0, "crop"), (points[1], 0, "crop"), (points[0], 1, "crop"), (points[0], 0, "crop_flip")]
    for validation, seed, augmentation in asked:
        tuned_layer(tiny(0), validation, seed, augmentation)
    tuned_layer(tiny(1), points[0], 0, "crop")
    assert len({point.folder for point in points}) == 2
    assert len(set(layers)) == 5


def test_toward_the_critical_layer(finetuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autolora.training.criticality.LEAST_STEPS", 0)
    finetuned(alpha=1, toward="critical")
    assert {r["toward"] for r in rows()} == {"branch", "natural", "critical"}
    assert [(r["toward"], r["alpha"]) for r in rows() if r["chosen"] == "1"] == [("critical", "1")]
    notes = read_notes("models/merged.safetensors")
    merged, robust = load_classifier("models/merged.safetensors").state_dict(), tiny(0).state_dict()
    assert [n for n, v in robust.items() if not torch.equal(v, merged[n])] == [f"{notes['critical_layer']}.weight"]
    first = Path("models/merged.safetensors").read_bytes()
    monkeypatch.setattr("stages.merging.validation.judge", lambda *_, **__: pytest.fail("measured before"))
    monkeypatch.setattr("autolora.training.criticality.worst_change", lambda *_: pytest.fail("measured before"))
    monkeypatch.setattr("autolora.training.criticality._batches", lambda *_: pytest.fail("tuned before"))
    finetuned(alpha=1, toward="critical")
    assert Path("models/merged.safetensors").read_bytes() == first
    finetuned(alpha=0, toward="critical")
    assert all(torch.equal(v, robust[n]) for n, v in load_classifier("models/merged.safetensors").state_dict().items())


def members() -> list[nn.Module]:
    """Three, of which the first is the robust network, and their start."""
    folder = Path("models/finetuned/members")
    networks = [tiny(0), tiny(2), tiny(3)]
    for i, network in enumerate(networks):
        save_classifier(network, folder / f"{i + 1}.safetensors")
        branch = Branch([("body.block.0", network.body.block[0])], generator=torch.Generator().manual_seed(i))
        nn.init.normal_(branch.B[0], std=0.2)
        save_branch(branch, folder / f"{i + 1}-branch.safetensors")
    save_classifier(tiny(9), folder / "start.safetensors")
    return networks


def test_a_soup_takes_the_robust_networks_place(finetuned, monkeypatch: pytest.MonkeyPatch) -> None:
    finetuned(alpha=0, toward="branch")  # its points are kept, and are not a soup's
    networks, x, y = members(), *(torch.from_numpy(np.load(f"data/prepared/val/{n}.npy")) for n in ("images", "labels"))
    for kind in ("uniform", "stock", "greedy"):
        finetuned(alpha=0, toward="branch", soup=kind)
        merged, notes = load_classifier("models/merged.safetensors"), read_notes("models/merged.safetensors")
        taken = [networks[int(i) - 1].body.fc.weight for i in notes["soup_members"].split()]
        assert notes["soup"] == kind
        assert len(taken) == 3 or kind == "greedy"
        assert torch.allclose(merged.body.fc.weight, sum(taken) / len(taken), atol=1e-6)
        clean = (merged(x.float() / 255).argmax(1) == y).float().mean().item()
        assert float(next(r for r in rows() if r["chosen"] == "1")["clean"]) == pytest.approx(clean, abs=1e-6)
    first = Path("models/merged.safetensors").read_bytes()
    monkeypatch.setattr("stages.merging.validation.judge", lambda *_, **__: pytest.fail("measured before"))
    finetuned(alpha=0, toward="branch", soup="greedy")
    assert Path("models/merged.safetensors").read_bytes() == first


def test_each_kind_of_soup_is_what_it_is_called_and_has_the_branches_of_its_members(finetuned) -> None:
    """At alpha = 1 a layer of it is the mean of the members' natural branches, or that drawn to the start."""
    networks, name = members(), "body.block.0.weight"
    weights = [network.state_dict()[name] for network in networks]
    deltas = [load_deltas(f"models/finetuned/members/{i}-branch.safetensors")[name] for i in (1, 2, 3)]
    start, mean, change = tiny(9).state_dict()[name], sum(weights) / 3, sum(deltas) / 3
    t = agreement(start, weights)
    assert 0.1 < t < 0.9
    for kind, expected in (("uniform", mean + change), ("stock", start + t * (mean + change - start))):
        finetuned(alpha=1, toward="branch", soup=kind)
        merged = load_classifier("models/merged.safetensors").state_dict()
        assert torch.allclose(merged[name], expected, atol=1e-5), kind


def test_members_without_a_soup_are_told_of(finetuned, capsys) -> None:
    members()
    finetuned(alpha=0, toward="branch")
    assert "merge: merge.soup is none: the first of 3 members ships\n" in capsys.readouterr().err
    first = load_classifier("models/finetuned/members/1.safetensors").state_dict()
    assert all(torch.equal(v, first[n]) for n, v in load_classifier("models/merged.safetensors").state_dict().items())


def test_a_soup_of_members_that_are_not_there(finetuned) -> None:
    members()
    Path("models/finetuned/members/2-branch.safetensors").unlink()
    Path("models/finetuned/members/2.safetensors").rename("models/finetuned/members/4.safetensors")
    with pytest.raises(StageError, match=r"members/2.safetensors is missing: run `dvc repro finetune`"):
        finetuned(alpha=0, toward="branch", soup="uniform")


def test_a_mixture_with_the_natural_twin(finetuned, capsys: pytest.CaptureFixture[str]) -> None:
    finetuned(alpha=0, toward="branch")
    alone = read_notes("models/merged.safetensors")
    finetuned(alpha=0, toward="branch", mix="nuts")
    assert "the robust network ships alone: 30 validation images are fewer than 100" in capsys.readouterr().out
    assert read_notes("models/merged.safetensors")["weights_sha256"] == alone["weights_sha256"]
    x = np.random.default_rng(1).integers(0, 256, (120, 3, 8, 8), dtype=np.uint8)
    y = tiny(0)(torch.from_numpy(x) / 255).argmax(1).numpy()
    y[:20] = (y[:20] + 1) % 10
    np.save("data/prepared/val/images.npy", x)
    np.save("data/prepared/val/labels.npy", y)
    finetuned(alpha=0, toward="branch", mix="nuts")
    merged, notes = load_classifier("models/merged.safetensors"), read_notes("models/merged.safetensors")
    assert notes["mix"] == "nuts"
    assert notes["robust_sha256"] == alone["robust_sha256"]
    for part, network in ((merged.body.robust, tiny(0)), (merged.body.accurate, tiny(1))):
        assert all(torch.equal(v, part.state_dict()[n]) for n, v in network.body.state_dict().items())
    clean = (merged(torch.from_numpy(x) / 255).argmax(1).numpy() == y).mean()
    assert float(notes["val_clean"]) == pytest.approx(clean, abs=1e-6)
    assert float(notes["val_robust"]) <= float(notes["val_clean"])
    turned = interpolate(tiny(0), tiny(1), 0.1)
    labels_of(turned)
    finetuned(alpha=0.1, toward="natural", mix="nuts")  # what the dial chose is mixed
    mixed = load_classifier("models/merged.safetensors")
    for part, network in ((mixed.body.robust, turned), (mixed.body.accurate, tiny(1))):
        assert all(torch.equal(v, part.state_dict()[n]) for n, v in network.body.state_dict().items())


def labels_of(network):
    """The validation images get the labels that this network gives them."""
    x = torch.from_numpy(np.load("data/prepared/val/images.npy")).float() / 255
    y = network(x).argmax(1)
    np.save("data/prepared/val/labels.npy", y.numpy())
    return x, y


def test_figures_of_one_soup_are_not_taken_for_those_of_another(finetuned) -> None:
    """The second member answers 7 to everything, and so does the mean of three; greedy leaves it out."""
    first, second, _ = members()
    x, _ = labels_of(first)
    second.body.fc.bias.data[7] += 100
    save_classifier(second, "models/finetuned/members/2.safetensors")
    y, found = first(x).argmax(1), []
    assert not (y == 7).any()
    for kind in ("uniform", "greedy"):
        finetuned(alpha=0, toward="branch", soup=kind)
        clean = (load_classifier("models/merged.safetensors")(x).argmax(1) == y).float().mean().item()
        found.append(float(next(r for r in rows() if r["chosen"] == "1")["clean"]))
        assert found[-1] == pytest.approx(clean, abs=1e-6)
    assert found == [0, 1]


def test_beside_the_critical_layer_the_natural_direction_leads_to_the_twin(finetuned, monkeypatch) -> None:
    monkeypatch.setattr("autolora.training.criticality.LEAST_STEPS", 0)
    labels_of(tiny(1))
    finetuned(alpha=1, toward="critical")
    ends = {row["toward"]: float(row["clean"]) for row in rows() if row["alpha"] == "1"}
    assert ends["critical"] < ends["natural"] == 1
