"""The small third-party nets of ../shared/weights, rebuilt, each as an eval-mode module on [0,1] pixels:

    model = load_zoo(shared, "resnet4b")

Building blocks only: the weights are not part of the repository, and tests that need them skip without them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
FILES = {
    "resnet20-natural": "cifar10-resnet20-natural.pth",
    "resnet20-robust2": "cifar10-resnet20-robust2.pth",
    "resnet2b": "cifar10-resnet2b-robust2.pth",
    "resnet4b": "cifar10-resnet4b-robust2.pth",
    "resnet20a": "cifar10-resnet20a-natural.th",
    "smallcnn": "mnist-smallcnn-trades03.pt",
    "resnet10t": "cifar10-resnet10t-linf8.safetensors",
}


class Normalized(nn.Module):
    """Normalising lives inside: an attack on this module is an attack in pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


class Block20(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(outputs)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn_2 = nn.BatchNorm2d(outputs)
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        else:
            self.downsample = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn_2(self.conv_2(F.relu(self.bn_1(self.conv_1(x)))))
        return F.relu(out + self.downsample(x))


class ResNet20(nn.Module):
    """CIFAR ResNet-20 with 1x1-convolution shortcuts."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(16)
        self.stage_1 = nn.Sequential(*[Block20(16, 16, 1) for _ in range(3)])
        self.stage_2 = nn.Sequential(*[Block20(16 if i == 0 else 32, 32, 2 if i == 0 else 1) for i in range(3)])
        self.stage_3 = nn.Sequential(*[Block20(32 if i == 0 else 64, 64, 2 if i == 0 else 1) for i in range(3)])
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_1(self.conv_1(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Block20a(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + shortcut)


class ResNet20a(nn.Module):
    """The original CIFAR ResNet-20: zero-padded identity shortcuts, no parameters in them."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Block20a(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(*[Block20a(16 if i == 0 else 32, 32, 2 if i == 0 else 1) for i in range(3)])
        self.layer3 = nn.Sequential(*[Block20a(32 if i == 0 else 64, 64, 2 if i == 0 else 1) for i in range(3)])
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class BlockB(nn.Module):
    """A basic block without batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential() if plain else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNetB(nn.Module):
    """resnet2b and resnet4b: a strided stem, one or two layers of two blocks, two linear layers."""

    def __init__(self, stem: int, widths: tuple[int, ...], classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, 2, 1)
        self.depth = len(widths)
        inputs = stem
        for i, width in enumerate(widths, 1):
            setattr(self, f"layer{i}", nn.Sequential(BlockB(inputs, width, 2), BlockB(width, width, 1)))
            inputs = width
        side = 16 >> self.depth
        self.linear1 = nn.Linear(inputs * side * side, 100)
        self.linear2 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for i in range(1, self.depth + 1):
            x = getattr(self, f"layer{i}")(x)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


def resnet2b() -> ResNetB:
    return ResNetB(8, (16,))


def resnet4b() -> ResNetB:
    return ResNetB(16, (32, 32))


class SmallCNN(nn.Module):
    """The MNIST network of TRADES: grey images in [0,1], no normalising."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        names = ["conv1", "relu1", "conv2", "relu2", "maxpool1", "conv3", "relu3", "conv4", "relu4", "maxpool2"]
        layers: list[nn.Module] = []
        for inputs, outputs, pool in ((1, 32, False), (32, 32, True), (32, 64, False), (64, 64, True)):
            layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU()] + [nn.MaxPool2d(2, 2)] * pool
        self.feature_extractor = nn.Sequential()
        for name, layer in zip(names, layers):
            self.feature_extractor.add_module(name, layer)
        self.classifier = nn.Sequential()
        self.classifier.add_module("fc1", nn.Linear(1024, 200))
        self.classifier.add_module("relu1", nn.ReLU())
        self.classifier.add_module("drop", nn.Dropout(0.5))
        self.classifier.add_module("fc2", nn.Linear(200, 200))
        self.classifier.add_module("relu2", nn.ReLU())
        self.classifier.add_module("fc3", nn.Linear(200, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.feature_extractor(x).flatten(1))


def resnet10t(classes: int = 10) -> nn.Module:
    import timm

    body = timm.create_model("resnet10t", num_classes=classes, channels=(32, 64, 128, 256), stem_width=16)
    body.maxpool = nn.Identity()
    return body


BODIES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "resnet20-natural": (ResNet20, IMAGENET),
    "resnet20-robust2": (ResNet20, IMAGENET),
    "resnet2b": (resnet2b, CIFAR),
    "resnet4b": (resnet4b, CIFAR),
    "resnet20a": (ResNet20a, IMAGENET),
    "smallcnn": (SmallCNN, ((0.0,), (1.0,))),
    "resnet10t": (resnet10t, IMAGENET),
}


def load_zoo(shared: Path, name: str) -> nn.Module:
    """One of FILES, on [0,1] pixels, in eval mode."""
    build, statistics = BODIES[name]
    body = build()
    body.load_state_dict(_state(there(shared / "weights" / FILES[name])))
    return Normalized(body, *statistics).eval()


def there(path: Path) -> Path:
    """Images and weights of others, which no repository of ours may hold: one line where they are absent."""
    if not path.is_file():
        sys.exit(
            f"{path} is not there: docs/autoattack.md says which files lie in data/ and weights/, and whose they are"
        )
    return path


def _state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True, map_location="cpu")
        state = state.get("state_dict", state)
    return {name.removeprefix("module."): value for name, value in state.items()}


def cifar500(shared: Path) -> tuple[Tensor, Tensor]:
    """The 500 listed CIFAR-10 test images: uint8 [500,3,32,32] and labels."""
    with np.load(there(shared / "data" / "cifar10-eval500.npz")) as data:
        return torch.from_numpy(data["x"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(data["y"])
