"""The stem for small images: geometry, and what becomes of an ImageNet kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autolora.backbones.classifier import Spec, build
from autolora.backbones.loading import load_backbone, reduce_kernel

SMALL = {"channels": [8, 8, 8, 8]}


def sizes(model, side=32):
    """Side of the feature map after the stem."""
    seen = []
    model.body.layer1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    model.eval()(torch.rand(1, 3, side, side))
    return seen[0]


@pytest.mark.parametrize(
    ("arch", "stem", "side"),
    [
        ("resnet18", "timm", 8), ("resnet18", "nopool", 16), ("resnet18", "lowres", 32),
        ("resnet10t", "timm", 8), ("resnet10t", "nopool", 16), ("resnet10t", "lowres", 32),
        ("torchvision:resnet18", "lowres", 32),
    ],
)  # fmt: skip
def test_side_of_the_first_features(arch, stem, side):
    options = {} if ":" in arch else SMALL
    assert sizes(build(Spec(arch, 3, 32, stem, options))) == side


def test_lowres_is_3x3_stride_1_without_pool():
    body = build(Spec("resnet18", 3, 32, "lowres")).body
    assert (body.conv1.kernel_size, body.conv1.stride, body.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(body.maxpool, nn.Identity)
    deep = build(Spec("resnet10t", 3, 32, "lowres")).body
    assert [deep.conv1[i].stride for i in (0, 3, 6)] == [(1, 1)] * 3


def test_reduced_kernel_answers_to_a_patch_as_the_large_one_to_the_patch_enlarged():
    large, patch = torch.randn(5, 3, 7, 7), torch.rand(2, 3, 3, 3)
    enlarged = F.interpolate(patch, size=(7, 7), mode="bilinear", align_corners=False)
    expected = F.conv2d(enlarged, large).flatten(1)
    assert torch.allclose(F.conv2d(patch, reduce_kernel(large)).flatten(1), expected, atol=1e-4)
    assert torch.allclose(reduce_kernel(large).sum((2, 3)), large.sum((2, 3)), atol=1e-5), "flat patches agree"


def test_an_imagenet_kernel_in_a_lowres_stem_is_reported(tmp_path):
    source = build(Spec("resnet18", 1000, 224, options=SMALL), seed=1)
    torch.save(source.body.state_dict(), tmp_path / "imagenet.pth")
    model = load_backbone("resnet18", tmp_path / "imagenet.pth", 3, stem="lowres", options=SMALL)
    assert "conv1: 7x7 kernel reduced to 3x3" in model.loading.stem
    assert torch.equal(model.body.conv1.weight, reduce_kernel(source.body.conv1.weight.detach()))
    assert torch.equal(model.body.layer1[0].conv1.weight, source.body.layer1[0].conv1.weight)


def test_a_3x3_kernel_is_taken_as_it_is(tmp_path):
    source = build(Spec("resnet18", 10, 32, "lowres", SMALL), seed=1)
    torch.save(source.body.state_dict(), tmp_path / "cifar.pth")
    model = load_backbone("resnet18", tmp_path / "cifar.pth", 3, stem="lowres", options=SMALL)
    assert model.loading.stem == ""
    assert torch.equal(model.body.conv1.weight, source.body.conv1.weight)


def test_a_3x3_kernel_does_not_fit_a_7x7_stem(tmp_path):
    torch.save(build(Spec("resnet18", 10, 32, "lowres", SMALL)).body.state_dict(), tmp_path / "cifar.pth")
    with pytest.raises(
        ValueError, match=r"(?s)conv1.weight is \(64, 3, 3, 3\), expected \(64, 3, 7, 7\).*`stem` lowres"
    ):
        load_backbone("resnet18", tmp_path / "cifar.pth", 3, options=SMALL)


def test_colour_weights_for_grey_images(tmp_path):
    source = build(Spec("resnet18", 10, 32, options=SMALL), seed=1)
    torch.save(source.body.state_dict(), tmp_path / "colour.pth")
    model = load_backbone("resnet18", tmp_path / "colour.pth", 3, channels=1, options=SMALL)
    assert "3 input channels made 1" in model.loading.stem
    assert torch.allclose(model.body.conv1.weight, source.body.conv1.weight.sum(1, keepdim=True), atol=1e-6)
