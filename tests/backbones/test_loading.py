"""A checkpoint on a network for a new task: what is taken, what is fresh, what is refused, and what is said of it."""

import json
import math
import sys

import numpy as np
import pytest
import timm
import torch

from autolora.backbones.classifier import Spec, build, load_classifier, save_classifier
from autolora.backbones.loading import load_backbone
from tests.backbones.test_checkpoints import MEAN, STD, prefixed

SMALL = {"channels": [8, 8, 8, 8]}


def source(arch="resnet18", classes=10, seed=1, options=SMALL, image_size=32, **more):
    return build(Spec(arch, classes, image_size, options=options, **more), seed).body


@pytest.fixture
def saved(tmp_path):
    """The path of a state dict in a file."""

    def save(state, name="weights.pth"):
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return save


def fe(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith(("fc.", "head", "classifier"))}


def test_the_feature_extractor_is_the_files_and_the_head_is_fresh(saved):
    body = source()
    path = saved(body.state_dict())
    model = load_backbone("resnet18", path, 10, options=SMALL, seed=4)
    assert all(torch.equal(v, fe(body)[k]) for k, v in fe(model.body).items())
    assert not torch.equal(model.body.fc.weight, body.fc.weight)
    assert torch.equal(model.body.fc.weight, build(Spec("resnet18", 10, 32, options=SMALL), 4).body.fc.weight)
    assert model.loading.head == "fc fresh, 10 classes (the file's has 10 classes)"


def test_the_head_is_kept_when_asked_for(saved):
    body = source()
    model = load_backbone("resnet18", saved(body.state_dict()), 10, options=SMALL, keep_head=True)
    assert torch.equal(model.body.fc.weight, body.fc.weight)
    assert model.loading.head == "fc kept, 10 classes (the file's has 10 classes)"
    with pytest.raises(ValueError, match=r"head cannot be kept: the file has \(10, 8\) for fc.weight.* \(7, 8\)"):
        load_backbone("resnet18", saved(body.state_dict()), 7, options=SMALL, keep_head=True)


def test_a_head_of_another_class_count_is_replaced(saved):
    model = load_backbone("resnet18", saved(source(classes=1000).state_dict()), 7, options=SMALL)
    assert model.body.fc.weight.shape[0] == 7
    assert model.loading.head == "fc fresh, 7 classes (the file's has 1000 classes)"


def test_a_file_without_a_head(saved):
    state = fe(source())
    model = load_backbone("resnet18", saved(prefixed(state, "module.backbone.")), 7, options=SMALL)
    assert model.loading.head == "fc fresh, 7 classes (none in the file)"
    assert model.loading.prefix == "module.backbone."


def test_salman_layout_from_file_to_statistics(saved):
    """DataParallel(AttackerModel), an ImageNet head, statistics of its own, an optimiser beside it."""
    body, mean = source(classes=1000), MEAN * 0.9
    state = {
        "module.normalizer.new_mean": mean, "module.normalizer.new_std": STD,
        **prefixed(body.state_dict(), "module.model."),
        "module.attacker.normalize.new_mean": mean, "module.attacker.normalize.new_std": STD,
        **prefixed(body.state_dict(), "module.attacker.model."),
    }  # fmt: skip
    path = saved({"model": state, "optimizer": {"state": {}}, "epoch": 3, "schedule": print})
    model = load_backbone("resnet18", path, 7, options=SMALL, trained_for="linf:4/255")
    assert all(torch.equal(v, fe(body)[k]) for k, v in fe(model.body).items())
    assert model.spec.mean == pytest.approx(mean.flatten().tolist(), abs=1e-5)
    assert model.loading.normaliser == "a normalising layer in the file"
    assert model.loading.duplicates == len(body.state_dict())
    assert model.loading.inert == ("builtins.print",) or model.loading.inert == ("__builtin__.print",)
    assert model.spec.trained_for == "linf:4/255"
    report = str(model.loading)
    for words in ("container: model", "prefix: module.model.", "fc fresh, 7 classes", "print", path.name):
        assert words in report


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"trained_for": "linf"}, r"trained_for is 'linf': expected a threat such as 'linf:8/255'"),
        ({"trained_for": 8}, "trained_for is 8: expected a threat"),
        ({"mean": 0.5, "std": 0.5}, r"mean is 0.5: expected one value a channel, such as \[0.5\]"),
        ({"mean": [0.5], "std": [math.nan]}, "std is .*: expected values above 0"),
        ({"mean": [math.inf], "std": [0.5]}, "mean is .*: expected finite values"),
    ],
)
def test_what_cannot_be_meant_is_one_line(how, said):
    with pytest.raises(ValueError, match=said):
        load_backbone("resnet18", None, 7, options=SMALL, **how)


def test_numbers_of_numpy_are_numbers():
    model = load_backbone("resnet18", None, np.int64(7), np.int64(48), options=SMALL)
    assert (model.spec.image_size, model.spec.classes) == (48, 7)
    Spec.from_json(model.spec.to_json())


def test_projection_heads_are_left_out_and_said(saved):
    """Self-supervised checkpoints (ACL, AdvCL, DynACL) bring modules that the classifier has no place for."""
    state = source().state_dict() | {"projector.0.weight": torch.zeros(4, 4), "fc2.bias": torch.zeros(3)}
    model = load_backbone("resnet18", saved(state), 7, options=SMALL)
    assert set(model.loading.left_out) == {"projector.0.weight", "fc2.bias"}


def test_a_deeper_network_does_not_fit_though_all_names_are_there(saved):
    """ResNet-34 holds every key of ResNet-18 in the same shape: taking them would be a silent disaster."""
    with pytest.raises(ValueError, match=r"(?s)does not fit resnet18.*missing: none.*unexpected: .* layer1.2 \(\d+\)"):
        load_backbone("resnet18", saved(source("resnet34").state_dict()), 7, options=SMALL)


def test_a_shallower_network_does_not_fit(saved):
    with pytest.raises(ValueError, match=r"(?s)missing: \d+ in layer1.2 \(\d+\).*unexpected: none.*head: fc fresh"):
        load_backbone("resnet34", saved(source().state_dict()), 7, options=SMALL)


def test_another_network_altogether(saved):
    with pytest.raises(ValueError, match=r"(?s)does not fit convnext_atto.*missing: \d+ in stem"):
        load_backbone("convnext_atto", saved(source().state_dict()), 7)


def test_one_absent_layer_stops(saved):
    state = source().state_dict()
    del state["layer3.0.bn2.weight"]
    with pytest.raises(ValueError, match=r"missing: 1 in layer3\.0 \(1\)"):
        load_backbone("resnet18", saved(state), 7, options=SMALL)


def test_absent_counters_of_old_files_do_not(saved):
    state = {k: v for k, v in source().state_dict().items() if "num_batches_tracked" not in k}
    load_backbone("resnet18", saved(state), 7, options=SMALL)


def test_a_failed_load_says_which_spec_the_file_has(tmp_path):
    model = build(Spec("resnet18", 10, 32, "lowres", SMALL))
    save_classifier(model, tmp_path / "own.safetensors", threat="linf:8/255")
    with pytest.raises(ValueError, match="the file says that it is resnet18 with stem lowres"):
        load_backbone("resnet34", tmp_path / "own.safetensors", 7, options=SMALL)


def test_our_own_files_bring_statistics_and_threat(tmp_path):
    spec = Spec("resnet18", 10, 32, "lowres", SMALL, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_classifier(build(spec), tmp_path / "own.safetensors", threat="linf:8/255")
    model = load_backbone("resnet18", tmp_path / "own.safetensors", 7, stem="lowres", options=SMALL)
    assert (model.spec.mean, model.spec.std) == (spec.mean, spec.std)
    assert model.spec.trained_for == "linf:8/255"
    assert model.loading.normaliser == "the file's own spec"
    save_classifier(model, tmp_path / "tuned.safetensors")
    assert load_classifier(tmp_path / "tuned.safetensors").spec.trained_for == "linf:8/255"


def test_statistics_given_win(saved):
    model = load_backbone("resnet18", saved(source().state_dict()), 7, options=SMALL, mean=[0.5] * 3, std=[0.25] * 3)
    assert (model.spec.mean, model.loading.normaliser) == ((0.5, 0.5, 0.5), "as given")


def test_statistics_of_timm(saved):
    assert load_backbone("vit_tiny_patch16_224", None, 7, options={"depth": 1}).spec.mean == (0.5, 0.5, 0.5)
    assert load_backbone("deit_tiny_patch16_224", None, 7, options={"depth": 1}).spec.mean == (0.485, 0.456, 0.406)


def test_statistics_of_a_config_beside_the_file(saved, tmp_path):
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = saved(source().state_dict())
    model = load_backbone("resnet18", path, 7, options=SMALL)
    assert (model.spec.mean, model.loading.normaliser) == ((0.1, 0.1, 0.1), "config.json beside the file")
    with pytest.raises(ValueError, match=r"config\.json beside the file says that it is resnet18"):
        load_backbone("resnet34", path, 7, options=SMALL)


@pytest.mark.parametrize(
    ("arch", "size", "options"),
    [
        ("vit_tiny_patch16_224", 64, {"depth": 2}),
        ("deit_tiny_distilled_patch16_224", 64, {"depth": 2}),
        ("swin_tiny_patch4_window7_224", 32, {"depths": [2, 2], "num_heads": [1, 2], "embed_dim": 16}),
    ],
)
def test_transformers_at_another_size(arch, size, options, saved):
    """Positions are fitted by timm's own converter; every other weight is the file's."""
    body = source(arch, 1000, options=options, image_size=224)
    path = saved({"model": prefixed(body.state_dict(), "module.")})
    model = load_backbone(arch, path, 7, size, options=options)
    assert "positions converted by timm" in model.loading.converted
    theirs, ours = fe(body), fe(model.body)
    same = [key for key in ours if theirs[key].shape == ours[key].shape and torch.equal(theirs[key], ours[key])]
    moved = {key.rpartition(".")[2] for key in ours if key not in same}
    assert moved <= {"pos_embed", "relative_position_bias_table", "relative_position_index", "attn_mask"}
    assert moved & {"pos_embed", "relative_position_bias_table"}
    oracle = timm.create_model(arch, num_classes=1000, img_size=size, **options)
    timm.models.load_checkpoint(
        oracle, path, use_ema=False, filter_fn=sys.modules[type(oracle).__module__].checkpoint_filter_fn
    )
    assert all(torch.equal(v, fe(oracle)[k]) for k, v in ours.items())


def test_original_convnext_names(saved):
    """The authors' own names (downsample_layers.0.0 ...), which timm's converter knows."""
    options = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    body = source("convnext_tiny", 1000, options=options)
    theirs = {}
    for key, value in body.state_dict().items():
        key = key.replace("stem.", "downsample_layers.0.").replace("head.norm.", "norm.").replace("head.fc.", "head.")
        for i in range(4):
            key = key.replace(f"stages.{i}.blocks.", f"stages.{i}.")
            key = key.replace(f"stages.{i}.downsample.", f"downsample_layers.{i}.")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
        theirs[key] = value
    model = load_backbone("convnext_tiny", saved({"model": theirs}), 7, options=options)
    assert all(torch.equal(v, body.state_dict()[k]) for k, v in model.body.state_dict().items() if "head.fc" not in k)


@pytest.mark.parametrize("arch", ["torchvision:mnasnet0_5", "torchvision:shufflenet_v2_x0_5"])
def test_torchvision_names(arch, saved):
    import torchvision

    theirs = torchvision.models.get_model(arch.partition(":")[2], weights=None)
    model = load_backbone(arch, saved(prefixed(theirs.state_dict(), "module.")), 7)
    assert len(model.loading.left_out) == 0
    state = theirs.state_dict()
    kept = {k: v for k, v in model.body.state_dict().items() if not k.startswith(("fc.", "classifier."))}
    assert all(torch.equal(v, state[k]) for k, v in kept.items())


def test_torchvision_resnet_weights_on_timm(saved):
    import torchvision

    theirs = torchvision.models.resnet18(weights=None)
    model = load_backbone("resnet18", saved(theirs.state_dict()), 1000, image_size=64, keep_head=True).eval()
    x = torch.rand(2, 3, 64, 64)
    assert torch.allclose(model(x), theirs.eval()((x - model.mean) / model.std), atol=1e-4)


def test_missing_file():
    with pytest.raises(ValueError, match=r"weights is 'nowhere/robust.pth': there is no such file"):
        load_backbone("resnet18", "nowhere/robust.pth")


def test_a_damaged_file_of_ours(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(ValueError, match=r"m\.safetensors is a damaged"):
        load_classifier(tmp_path / "m.safetensors")


def test_a_file_that_is_not_ours(saved, tmp_path):
    import safetensors.torch

    safetensors.torch.save_file(source().state_dict(), tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="not written by save_classifier: start from it with load_backbone"):
        load_classifier(tmp_path / "foreign.safetensors")
