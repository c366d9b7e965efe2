"""Every family of networks with random weights at small sizes: it runs, it learns, it round-trips, it repeats."""

import pytest
import torch
from torch import nn

from autolora.attacks.pgd import pgd
from autolora.backbones.classifier import Spec, as_classifier, build, load_classifier, save_classifier
from autolora.backbones.layers import head_name
from autolora.backbones.loading import load_backbone
from autolora.threat import Threat
from autolora.training.loop import finetune
from benchmarks.zoo import ResNet20, SmallCNN

TINY = {
    "ResNet": dict(arch="resnet10t", stem="lowres", options={"channels": [8, 8, 16, 16], "stem_width": 8}),
    "ResNet-18": dict(arch="resnet18", stem="lowres", options={"channels": [8, 16, 16, 24]}),
    "WideResNet": dict(
        arch="wide_resnet50_2", stem="lowres", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    ),
    "ResNeXt": dict(arch="resnext50_32x4d", options={"layers": [1, 1, 1, 1]}),
    "RegNet": dict(arch="regnety_002", stem="lowres"),
    "ConvNeXt": dict(arch="convnext_atto", options={"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]}),
    "EfficientNet": dict(arch="efficientnet_b0", stem="lowres"),
    "ViT": dict(arch="vit_tiny_patch16_224", options={"patch_size": 8, "depth": 2}),
    "DeiT": dict(arch="deit_tiny_patch16_224", options={"depth": 2}),
    "DeiT distilled": dict(arch="deit_tiny_distilled_patch16_224", options={"depth": 2}),
    "Swin": dict(arch="swin_tiny_patch4_window7_224", options={"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16}),
    "Swin enlarged": dict(
        arch="swin_tiny_patch4_window7_224",
        network_size=56,
        options={"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16},
    ),
    "plain": dict(arch="benchmarks.zoo:ResNet20"),
    "torchvision": dict(arch="torchvision:shufflenet_v2_x0_5"),
}


@pytest.mark.parametrize("family", TINY)
def test_a_small_one_of_each_family(family, tmp_path):
    model = load_backbone(classes=3, image_size=32, **TINY[family])
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    nn.functional.cross_entropy(model(x), y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.eval()
    attacked = pgd(model, x, y, Threat("linf", "8/255"), steps=1)
    assert attacked.shape == x.shape, "the attack lives in the pixels of the image as given"
    save_classifier(model, tmp_path / "m.safetensors")
    again = load_classifier(tmp_path / "m.safetensors")
    assert torch.equal(again(x), model(x))
    assert again.spec.to_json() == model.spec.to_json()


@pytest.mark.parametrize("family", TINY)
@pytest.mark.slow
def test_autolora_trains_each_family(family):
    """Branch, attack on the folded copy, losses, a step, and validation: the weights move and stay numbers."""
    model = load_backbone(classes=3, image_size=32, **TINY[family])
    x, y = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8), torch.arange(12) % 3
    tuned = finetune(model, (x, y), (x[:3], y[:3]), Threat("linf", "8/255"), epochs=1, batch_size=6, progress=False)
    before, after = model.state_dict(), tuned.model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(value.isfinite().all() for value in tuned.branch.factors().values())


@pytest.mark.parametrize("family", ["ResNet", "ViT", "plain"])
def test_fresh_weights_depend_on_the_seed_alone(family):
    torch.manual_seed(1)
    first = load_backbone(classes=3, seed=5, **TINY[family]).state_dict()
    state = torch.random.get_rng_state()
    second = load_backbone(classes=3, seed=5, **TINY[family]).state_dict()
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random state moved"
    other = load_backbone(classes=3, seed=6, **TINY[family]).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_checking_a_network_moves_none_of_its_statistics():
    spec = Spec(classes=3, image_size=32, **TINY["ResNet"])
    built, loaded = build(spec).state_dict(), load_backbone(classes=3, **TINY["ResNet"]).state_dict()
    assert all(torch.equal(built[key], loaded[key]) for key in built)


def test_enlarging_is_nearest_and_inside():
    model = build(Spec("resnet10t", 3, 16, network_size=32, options=TINY["ResNet"]["options"])).eval()
    x = torch.rand(2, 3, 16, 16)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(model(x), model.body((doubled - model.mean) / model.std))


def test_a_large_backbone_on_small_images():
    model = load_backbone("vit_tiny_patch16_224", classes=3, image_size=32, network_size=224, options={"depth": 1})
    assert model.body.patch_embed.img_size == (224, 224)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)


def test_normalising_is_inside():
    model = load_backbone(classes=3, **TINY["ResNet"]).eval()
    x = torch.rand(2, 3, 32, 32)
    normalised = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    assert torch.allclose(model(x), model.body(normalised), atol=1e-5)


def test_any_module_as_classifier(tmp_path):
    module = ResNet20().eval()
    x = torch.rand(2, 3, 32, 32)
    expected = module(x)
    model = as_classifier(module).eval()
    assert torch.equal(model(x), expected), "taken as it is: head kept, pixels not normalised"
    fresh = as_classifier(ResNet20(), classes=4, mean=(0.5,), std=(0.25,), seed=3)
    assert fresh(x).shape == (2, 4)
    save_classifier(fresh.eval(), tmp_path / "m.safetensors")
    again = load_classifier(tmp_path / "m.safetensors", body=as_classifier(ResNet20(), classes=4).body)
    assert torch.equal(again(x), fresh(x))
    twin = as_classifier(ResNet20(), classes=4, seed=3)
    assert torch.equal(twin.body.fc.weight, fresh.body.fc.weight)


def test_grey_images():
    model = as_classifier(SmallCNN(), classes=2, image_size=28, channels=1)
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 2)
    timm_model = load_backbone("resnet10t", classes=2, image_size=28, channels=1, options=TINY["ResNet"]["options"])
    assert timm_model(torch.rand(2, 1, 28, 28)).shape == (2, 2)
    assert timm_model.spec.mean == (0.0,)


WRONG = [
    (dict(arch="resnet81"), "did you mean resnet18"),
    (dict(arch="resnet18.nonsense"), "no tag 'nonsense', but a1_in1k"),
    (dict(arch="qqqqqqqq"), "see timm.list_models"),
    (dict(arch="torchvision:resnet19"), "did you mean resnet18"),
    (dict(arch="torchvision:googlenet"), "gives a GoogLeNetOutputs"),
    (dict(arch="os:system"), "class derived from torch.nn.Module"),
    (dict(arch="no_such_package:Net"), "No module named"),
    (dict(arch="benchmarks.zoo:NoSuchNet"), "cannot be imported"),
    (dict(arch="resnet18", options={"colour": 3}), "options is .*unexpected keyword argument 'colour'"),
    (dict(arch="resnet18", options={"pretrained": True}), "pretrained is set by"),
    (dict(arch="resnet18", classes=1), "at least 2 classes"),
    (dict(arch="resnet18", stem="tiny"), "expected one of timm, lowres, nopool"),
    (dict(arch="resnet18", mean=[0.5, 0.5, 0.5]), "belong together"),
    (dict(arch="resnet18", mean=[0.5, 0.5], std=[1, 1]), "one value for each of 3 channels"),
    (dict(arch="resnet18", mean=[0.5], std=[0]), "above 0"),
    (
        dict(arch="inception_v3", image_size=32),
        "image_size is 32: inception_v3 does not run on images of that size.*network_size",
    ),
    (dict(arch="vit_tiny_patch16_224", stem="lowres"), "cuts the image into patches of 16 by 16"),
    (dict(arch="convnext_atto", stem="lowres"), "no meaning for ConvNeXt"),
    (dict(arch="convnext_atto", stem="nopool"), "no max-pool in its stem"),
    (dict(arch="efficientnet_b0", stem="nopool"), "no max-pool in its stem"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
def test_a_wrong_backbone_says_why(wrong, words):
    with pytest.raises(ValueError, match=words):
        load_backbone(**{"classes": 3, **wrong})


def test_a_head_without_classes():
    with pytest.raises(ValueError, match="at least 2 classes"):
        as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1)))
    assert head_name(SmallCNN()) == "classifier.fc3"
