"""The fifteen corruptions against a slow oracle, and what is promised of their draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autolora.common.errors import BadArgument
from autolora.corruptions.corrupt import CORRUPTIONS, SEVERITIES, STRENGTHS, corrupted, strengths_of
from autolora.corruptions.draws import Draws
from autolora.corruptions.weather import ICE, ice
from tests.oracle import corruptions as oracle

PLAIN = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")  # nothing is drawn


def images(n: int, side: int) -> Tensor:
    """Smooth colours with edges: uint8 [n,3,side,side]."""
    draw = torch.Generator().manual_seed(side)
    x = F.interpolate(torch.rand(n, 3, 6, 6, generator=draw), size=side, mode="bicubic").clamp(0, 1)
    x[:, :, side // 3 : side // 2] = 1 - x[:, :, side // 3 : side // 2]
    x[0, :, :2, :2] = 0  # black, which has no hue
    return (x * 255).to(torch.uint8)


@pytest.mark.parametrize("side", [16, 32, 48])
@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "frost"])
def test_as_the_oracle(name: str, side: int) -> None:
    """Within one grey level: bytes are cut off, so that rounding may fall on either side."""
    x, ids = images(2, side), ["a", "b"]
    for severity in SEVERITIES:
        found = corrupted(x, ids, name, severity, seed=3).int()
        strength = STRENGTHS[strengths_of(side)][name][severity - 1]
        for image, one, ours in zip(x, ids, found):
            pixels = image.permute(1, 2, 0).double().numpy() / 255
            expected = getattr(oracle, name)(pixels, strength, Draws(3, f"{name}/{severity}", [one]))
            theirs = torch.from_numpy((np.clip(expected, 0, 1) * 255).astype(np.int64)).permute(2, 0, 1)
            assert (ours - theirs).abs().max() <= 1, severity
            assert (ours != theirs).double().mean() < 0.05, severity


def test_frost_is_ice_on_top_of_the_image() -> None:
    """Of the colour and contrast that were measured on the original's photographs; by the published shares."""
    x, ids = images(40, 32), [str(i) for i in range(40)]
    drawn = ice(Draws(0, "frost/5", ids), 32, 32)
    found = corrupted(x, ids, "frost", 5).double()
    assert (found - (0.75 * x + 0.45 * 255 * drawn).clamp(0, 255).floor()).abs().max() <= 1
    near = (drawn.mean((2, 3))[:, None] - ICE[:, :3]).abs().amax(2)  # to each tone
    assert near.amin(1).max() < 0.03
    assert len(near.argmin(1).unique()) == len(ICE)
    assert (drawn.mean(1).std((1, 2)) - ICE[near.argmin(1), 3]).abs().max() < 0.03


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_by_its_id_and_the_seed(name: str) -> None:
    x, ids = images(4, 16), ["a", "b", "c", "d"]
    whole = corrupted(x, ids, name, 4)
    assert torch.equal(corrupted(x[[2, 0]], ["c", "a"], name, 4), whole[[2, 0]])
    assert torch.equal(corrupted(x, ids, name, 4, seed=1), whole) == (name in PLAIN)
    assert torch.equal(corrupted(x, ["e", "f", "g", "h"], name, 4), whole) == (name in PLAIN)
    assert not torch.equal(whole, x)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast", "fog"])
def test_severity_moves_an_image_further(name: str, side: int) -> None:
    x, ids = images(6, side), list("abcdef")
    away = [(corrupted(x, ids, name, s).double() - x).abs().mean() for s in SEVERITIES]
    assert away == sorted(away)


def test_strengths_go_by_the_size() -> None:
    assert [strengths_of(side) for side in (16, 32, 33, 224)] == ["CIFAR-10-C"] * 2 + ["ImageNet-C"] * 2
    for table in STRENGTHS.values():
        assert list(table) == list(CORRUPTIONS)
        assert all(len(levels) == len(SEVERITIES) for levels in table.values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "rain"}, "name is 'rain': expected one of gaussian_noise"),
        ({"severity": 6}, "severity is 6"),
        ({"x": torch.zeros(1, 3, 15, 40, dtype=torch.uint8)}, "x is of 15 pixels a side"),
        ({"x": torch.zeros(1, 3, 16, 16)}, "expected uint8 images"),
        ({"x": torch.zeros(1, 1, 16, 16, dtype=torch.uint8)}, "expected uint8 images"),
    ],
)
def test_bad_input(change: dict, said: str) -> None:
    good = {"x": images(1, 16), "ids": ["a"], "name": "fog", "severity": 1}
    with pytest.raises(BadArgument, match=said):
        corrupted(**{**good, **change})
