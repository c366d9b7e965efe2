"""Head, stem and block layers of networks of every kind, against counts taken from the papers or by hand."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from autolora.backbones.classifier import Spec, build, replace_head
from autolora.backbones.layers import block_layers, head_name, head_names, stem_names
from benchmarks.zoo import ResNet20, ResNet20a, SmallCNN, resnet4b

# arch: (head, stem, layers between); 19 and 52 are the counts that the method is stated with
KNOWN = {
    "resnet18": (["fc"], ["conv1"], 19),
    "resnet50": (["fc"], ["conv1"], 52),
    "wide_resnet50_2": (["fc"], ["conv1"], 52),
    "resnext50_32x4d": (["fc"], ["conv1"], 52),
    "resnet10t": (["fc"], ["conv1.0", "conv1.3", "conv1.6"], 11),
    "resnetv2_50": (["head.fc"], ["stem.conv"], 52),
    "regnety_002": (["head.fc"], ["stem.conv"], 69),
    "convnext_atto": (["head.fc"], ["stem.0"], 39),  # 12 blocks of 3, 3 downsamplings
    "efficientnet_b0": (["classifier"], ["conv_stem"], 80),
    "densenet121": (["classifier"], ["features.conv0"], 119),
    "vit_tiny_patch16_224": (["head"], ["patch_embed.proj"], 48),  # 12 blocks of qkv, proj, fc1, fc2
    "deit_tiny_patch16_224": (["head"], ["patch_embed.proj"], 48),
    "deit_tiny_distilled_patch16_224": (["head", "head_dist"], ["patch_embed.proj"], 48),
    "swin_tiny_patch4_window7_224": (["head.fc"], ["patch_embed.proj"], 51),  # 12 blocks of 4, 3 mergings
    "vit_base_r50_s16_224": (["head"], ["patch_embed.backbone.stem.conv"], 100),
    "xcit_nano_12_p16_224": (["head"], [f"patch_embed.proj.{i}.0" for i in (0, 2, 4, 6)], 85),
    "repvgg_a0": (["head.fc"], ["stem.conv_kxk.conv", "stem.conv_1x1.conv"], 42),
    "dla34": (["fc"], ["base_layer.0"], 36),  # its head is a 1x1 convolution
}


@pytest.mark.parametrize("arch", KNOWN)
def test_timm_networks(arch):
    with torch.device("meta"):
        network = timm.create_model(arch, num_classes=7)
    head, stem, between = KNOWN[arch]
    assert (head_names(network), stem_names(network), len(block_layers(network))) == (head, stem, between)


@pytest.mark.parametrize("wrap", [lambda n: nn.Sequential(nn.Identity(), n), lambda n: nn.ModuleDict({"a": n})])
def test_a_wrapped_network_is_seen_through(wrap):
    with torch.device("meta"):
        bare = timm.create_model("resnet10t", num_classes=7)
    model = wrap(bare)
    prefix = next(iter(dict(model.named_children()))) if isinstance(model, nn.ModuleDict) else "1"
    assert [name for name, _ in block_layers(model)] == [f"{prefix}.{name}" for name, _ in block_layers(bare)]
    assert head_names(model) == [f"{prefix}.fc"]


def test_a_head_put_after_a_timm_network_is_the_head():
    with torch.device("meta"):
        model = nn.Sequential(timm.create_model("resnet18", num_classes=0), nn.Linear(512, 7))
        topped = nn.Sequential(timm.create_model("resnet18", num_classes=1000), nn.Linear(1000, 7))
    assert head_names(model) == ["1"]
    assert head_names(topped) == ["1"]
    assert len(block_layers(model)) == 19


PLAIN = {
    "resnet20": (ResNet20, ["fc"], ["conv_1"], 20),  # 18 and 2 shortcuts
    "resnet20a": (ResNet20a, ["linear"], ["conv1"], 18),
    "resnet4b": (resnet4b, ["linear2"], ["conv1"], 11),  # 8 and 2 shortcuts, and linear1
    "smallcnn": (SmallCNN, ["classifier.fc3"], ["feature_extractor.conv1"], 5),
    "torchvision resnet50": (torchvision.models.resnet50, ["fc"], ["conv1"], 52),
    "torchvision convnext": (torchvision.models.convnext_tiny, ["classifier.2"], ["features.0.0"], 57),
    "torchvision squeezenet": (torchvision.models.squeezenet1_1, ["classifier.1"], ["features.0"], 24),
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), ["3"], [], 1),
    "too small": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 3)), ["2"], ["0"], 0),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_modules(name):
    make, head, stem, between = PLAIN[name]
    with torch.device("meta"):
        model = make()
    assert (head_names(model), stem_names(model), len(block_layers(model))) == (head, stem, between)


def test_block_layers_contract():
    model = build(Spec("resnext50_32x4d", 5, 32))
    layers = block_layers(model)
    assert all(model.get_submodule(name) is layer for name, layer in layers)
    assert len({id(layer) for _, layer in layers}) == len(layers)
    assert {layer.groups for _, layer in layers} == {1, 32}
    order = [name for name, _ in model.named_modules()]
    assert [name for name, _ in layers] == sorted((name for name, _ in layers), key=order.index)


def test_the_head_gives_the_logits():
    """The oracle: what the layer named as head puts out is what the network puts out."""
    for arch in ("resnet10t", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0", "dla34"):
        model = build(Spec(arch, 5, 32)).eval()
        seen = []
        model.get_submodule(head_name(model)).register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        logits = model(torch.rand(2, 3, 32, 32))
        assert torch.equal(seen[0].flatten(1), logits), arch


def test_no_head_is_an_error():
    with pytest.raises(ValueError, match="no linear head"):
        head_name(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))


def test_replace_head_keeps_the_rest():
    model = ResNet20()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    replace_head(model, 4)
    assert model.fc.weight.shape == (4, 64)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if not k.startswith("fc."))
    kept = model.fc
    assert replace_head(model, 4).fc is kept
