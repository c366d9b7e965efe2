"""Accuracy under corruptions against a loop over images, and how it goes on where it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autolora.attacks import under_corruptions as module
from autolora.attacks.evaluation import Settings
from autolora.attacks.under_corruptions import under_corruptions
from autolora.common.errors import BadArgument
from autolora.corruptions.corrupt import CORRUPTIONS, SEVERITIES, corrupted
from autolora.data.images import TestImages
from tests.attacks.nets import Linear, images, smooth


@pytest.fixture(scope="module")
def some() -> tuple[torch.nn.Module, TestImages]:
    net, x = Linear(5, (3, 16, 16)), images(6, side=16)
    return net, TestImages.of((x * 255).round().byte(), net(x).argmax(1))


def test_as_one_image_after_another(some) -> None:
    net, test = some
    right = under_corruptions(net, test, Settings(seed=2, show=False))
    assert right.shape == (6, 15, 5)
    for i, (pixels, label, one) in enumerate(zip(torch.from_numpy(test.x), test.y.tolist(), test.ids)):
        for k, name in enumerate(CORRUPTIONS):
            for severity in SEVERITIES:
                image = corrupted(pixels[None], [one], name, severity, seed=2)
                assert right[i, k, severity - 1] == (int(net(image / 255).argmax()) == label)
    assert 0.2 < right.double().mean() < 1
    floats = TestImages(test.floats, test.y, test.ids)
    assert torch.equal(under_corruptions(net, floats, Settings(seed=2, show=False)), right)


def test_a_killed_one_goes_on(some, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, test = some
    asked: list[tuple[str, int]] = []

    def dying(x, ids, name, severity, seed):
        asked.append((name, severity))
        if len(asked) == 30:
            raise KeyboardInterrupt
        return corrupted(x, ids, name, severity, seed)

    monkeypatch.setattr(module, "corrupted", dying)
    settings = Settings(seed=2, show=False, progress=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        under_corruptions(net, test, settings)
    found = under_corruptions(net, test, settings)
    assert len(asked) == 76  # the one that died is made again
    assert torch.equal(found, under_corruptions(net, test, Settings(seed=2, show=False)))
    assert len(asked) == 76 + 75


def test_several_processes_share_the_kinds(some, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its part, and together they have all."""
    net, test = some
    whole, parts = under_corruptions(net, test, Settings(show=False)), dict[tuple[str, int], torch.Tensor]()
    monkeypatch.setattr(module.distributed, "process_count", lambda: 2)
    monkeypatch.setattr(module.distributed, "gathered", lambda found: parts.update(found) or parts)
    monkeypatch.setattr(module.distributed, "process_number", lambda: 0)
    with pytest.raises(KeyError):  # the other's part is not there yet
        under_corruptions(net, test, Settings(show=False))
    assert len(parts) == 38
    monkeypatch.setattr(module.distributed, "process_number", lambda: 1)
    assert torch.equal(under_corruptions(net, test, Settings(show=False)), whole)


@pytest.mark.parametrize("other", ["network", "labels", "images", "seed"])
def test_nobody_elses_progress_is_gone_on_from(some, tmp_path: Path, other: str) -> None:
    net, test = some
    under_corruptions(net, test, Settings(seed=2, show=False, progress=tmp_path))
    seed = 2
    if other == "network":
        net = Linear(6, (3, 16, 16))
    elif other == "labels":
        test = TestImages(test.x, (test.y + 1) % 2, test.ids)
    elif other == "images":
        test = TestImages(255 - test.x, test.y, test.ids)
    else:
        seed = 3
    with pytest.raises(ValueError, match="holds the progress of another evaluation"):
        under_corruptions(net, test, Settings(seed=seed, show=False, progress=tmp_path))


def test_grey_levels_and_labels_that_no_network_knows(some) -> None:
    net, test = some
    with pytest.raises(ValueError, match="divide them by 255"):
        under_corruptions(net, TestImages.of(test.floats * 255, test.y), Settings(show=False))
    with pytest.raises(ValueError, match="and the network answers for"):
        under_corruptions(net, TestImages.of(test.x, test.y + 100), Settings(show=False))


def test_images_that_are_too_small() -> None:
    x = images(2, side=15)
    with pytest.raises(BadArgument, match="at least 16"):
        under_corruptions(smooth(3, side=15), TestImages.of(x, [0, 1]), Settings(show=False))
