"""Real checkpoints, most of them other people's: the accuracies that are published with them, through our loader.

PGD-20 in pixels, step eps/4, one random start, on 500 CIFAR-10 test images: one start or another moves the count by a
few images, so a point (5 images) is allowed. Had the attack been made after normalising, 2/255 would be about 8/255.
"""

import numpy as np
import pytest
import torch

from autolora.attacks.pgd import pgd
from autolora.backbones.frozen import frozen
from autolora.backbones.loading import load_backbone
from autolora.threat import Threat

CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2471, 0.2435, 0.2616]}
B2 = {"stem": 8, "widths": [16]}
B4 = {"stem": 16, "widths": [32, 32]}
T10 = {"channels": [32, 64, 128, 256], "stem_width": 16}
# file: how it is loaded, the threat that it was trained for
FILES = {
    "cifar10-resnet20-natural.pth": (dict(arch="benchmarks.zoo:ResNet20"), None),
    "cifar10-resnet20-robust2.pth": (dict(arch="benchmarks.zoo:ResNet20"), "linf:2/255"),
    "cifar10-resnet2b-robust2.pth": (dict(arch="benchmarks.zoo:ResNetB", options=B2, **CIFAR), "linf:2/255"),
    "cifar10-resnet4b-robust2.pth": (dict(arch="benchmarks.zoo:ResNetB", options=B4, **CIFAR), "linf:2/255"),
    "cifar10-resnet20a-natural.th": (dict(arch="benchmarks.zoo:ResNet20a"), None),
    "cifar10-resnet10t-linf8.safetensors": (dict(arch="resnet10t", stem="nopool", options=T10), "linf:8/255"),
    "mnist-smallcnn-trades03.pt": (dict(arch="benchmarks.zoo:SmallCNN", channels=1, image_size=28), "linf:0.3"),
}
CLEAN = {  # percent, of 500 images: exact
    "cifar10-resnet20-natural.pth": 89.8,
    "cifar10-resnet20-robust2.pth": 86.0,
    "cifar10-resnet2b-robust2.pth": 72.4,
    "cifar10-resnet4b-robust2.pth": 78.8,
    "cifar10-resnet10t-linf8.safetensors": 70.2,
}
PGD20 = [  # each way of loading once; that each file is read right, CLEAN tells
    ("cifar10-resnet20-natural.pth", "1/255", 15.8),
    ("cifar10-resnet2b-robust2.pth", "2/255", 59.4),
    ("cifar10-resnet10t-linf8.safetensors", "8/255", 40.2),
]


@pytest.fixture(scope="module")
def images(shared):
    with np.load(shared / "data" / "cifar10-eval500.npz") as data:
        return torch.from_numpy(data["x"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(data["y"])


def network(shared, file):
    how, threat = FILES[file]
    return load_backbone(
        weights=shared / "weights" / file, classes=10, keep_head=True, trained_for=threat, **how
    ).eval()


def percent(model, x, y):
    with torch.no_grad():
        return 100 * (model(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("file", FILES)
def test_it_loads_whole(shared, file):
    model = network(shared, file)
    counters = [key for key in model.body.state_dict() if key.endswith("num_batches_tracked")]
    absent = len(model.body.state_dict()) - model.loading.loaded
    assert absent == (len(counters) if file.endswith("20a-natural.th") else 0), "torch did not save counters in 2018"
    assert (model.loading.left_out, model.loading.inert) == ((), ())
    assert model.spec.trained_for == FILES[file][1]


@pytest.mark.parametrize("file", CLEAN)
def test_clean_accuracy(shared, images, file):
    assert percent(network(shared, file), *images) == pytest.approx(CLEAN[file], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "eps", "published"), PGD20)
def test_robust_accuracy(shared, images, file, eps, published):
    model = network(shared, file).to(memory_format=torch.channels_last)
    threat, generator, right = Threat("linf", eps), torch.Generator().manual_seed(0), 0
    for x, y in zip(images[0].split(125), images[1].split(125)):
        with frozen(model):
            attacked = pgd(model, x, y, threat, steps=20, generator=generator)
        assert (attacked - x).abs().max() <= threat.eps + 1e-6
        right += percent(model, attacked, y) * len(x)
    assert right / 500 == pytest.approx(published, abs=1.0)


def test_statistics_matter(shared, images):
    """The control: with the wrong mean and std these nets give other numbers, so those above can fail."""
    how = dict(arch="benchmarks.zoo:ResNetB", options=B4)
    wrong = load_backbone(
        weights=shared / "weights" / "cifar10-resnet4b-robust2.pth", classes=10, keep_head=True, **how
    )
    assert percent(wrong.eval(), *images) != pytest.approx(78.8, abs=0.05)


def test_a_new_task_starts_from_the_features(shared, images):
    """The fresh head knows nothing, the features below it are the file's."""
    how, _ = FILES["cifar10-resnet10t-linf8.safetensors"]
    path = shared / "weights" / "cifar10-resnet10t-linf8.safetensors"
    fresh = load_backbone(weights=path, classes=10, **how).eval()
    kept = load_backbone(weights=path, classes=10, keep_head=True, **how).eval()
    x, y = images[0][:100], images[1][:100]
    with torch.no_grad():
        assert torch.equal(fresh.body.forward_features(x), kept.body.forward_features(x))
    assert percent(fresh, x, y) < 30 < percent(kept, x, y)
