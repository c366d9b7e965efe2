"""IDBH's augmentation: what each part promises, and that a row of draws decides all."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional

from autolora.data import idbh
from autolora.data.batches import augmentation


@pytest.mark.parametrize("side", [32, 16])
def test_a_shifted_crop_leaves_as_many_black_pixels_as_it_took(side):
    seen = set()
    for row in torch.rand(200, 6, generator=torch.Generator().manual_seed(0)).tolist():
        found = idbh.crop_shift(torch.ones(3, side, side), row)
        total = int(row[0] * (int(side * 10 / 32) + 1))
        across = int(row[1] * (total + 1))
        down = total - across
        assert (found == 0).sum() == 3 * (across * side + down * side - across * down)
        seen.add(total)
    assert seen == set(range(side * 10 // 32 + 1))


def test_what_stays_keeps_its_neighbours():
    image = torch.arange(3 * 32 * 32, dtype=torch.float32).view(3, 32, 32) + 1
    found = idbh.crop_shift(image, [0.99, 0.5, 0.3, 0.7, 0.9, 0.1])
    rows, columns = found[0].nonzero(as_tuple=True)
    kept = found[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (kept > 0).all()
    assert (kept.diff(dim=1) == 1).all()
    assert (kept.diff(dim=0) == 32).all()


def test_each_change_is_as_frequent_as_the_others():
    share = (idbh.draw(8000, torch.Generator().manual_seed(1))[:, 7] * len(idbh.CHANGES)).int().bincount() / 8000
    assert len(share) == 8
    assert ((share - 1 / 8).abs() < 0.02).all()


@pytest.mark.parametrize("change", range(8))
def test_each_change_keeps_shape_and_range_and_changes_something(change):
    image = (torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2)) * 200).byte()
    found = [idbh.CHANGES[change](image, strength, coin) for strength in (0.2, 1.0) for coin in (0.1, 0.6)]
    for one in found:
        assert one.shape == image.shape
        assert one.dtype == torch.uint8
        assert not torch.equal(one, image)
    if change == 6:  # four ways to shear
        ways = {idbh.CHANGES[6](image, 1.0, coin).numpy().tobytes() for coin in (0.1, 0.35, 0.6, 0.85)}
        assert len(ways) == 4


def test_every_second_image_loses_a_part_of_the_published_size():
    rows = idbh.draw(2000, torch.Generator().manual_seed(3))
    assert abs((rows[:, 10] < idbh.ERASED).float().mean() - 0.5) < 0.05
    gone = torch.tensor(
        [(idbh.erased(torch.ones(1, 32, 32), row) == 0).float().mean() for row in rows[:, 11:15].tolist()]
    )
    assert gone.min() > 0.01
    assert gone.max() < 0.36
    assert abs(gone.mean() - 0.17) < 0.02


def test_a_row_of_draws_decides_all():
    way = augmentation("idbh", 32, 32)
    images = (torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(4)) * 255).byte()
    first, again = (way.draw(6, torch.Generator().manual_seed(5)) for _ in range(2))
    found = way.apply(images, first)
    assert torch.equal(found, way.apply(images, again))
    assert torch.equal(found[2:4], way.apply(images[2:4], first[2:4]))  # another process' part
    assert not torch.equal(found, way.apply(images, way.draw(6, torch.Generator().manual_seed(6))))


@pytest.mark.parametrize(
    ("change", "name", "low", "high"),
    [
        (0, "saturation", 0.1, 1.9),
        (1, "brightness", 0.5, 1.9),
        (2, "contrast", 0.5, 1.9),
        (3, "sharpness", 0.1, 1.9),
    ],
)
def test_colours_change_by_as_much_as_published(change, name, low, high):
    image = (torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(4)) * 255).byte()
    adjusted = getattr(torchvision.transforms.v2.functional, f"adjust_{name}")
    for strength, factor in ((0.0, low), (0.5, (low + high) / 2), (1.0, high)):
        assert torch.equal(idbh.CHANGES[change](image, strength, 0.1), adjusted(image, factor))


@pytest.mark.parametrize(("strength", "rotated", "sheared"), [(0.0, 1.0, 0.05), (1.0, 10.0, 0.15)])
def test_shapes_change_by_as_much_as_published(strength, rotated, sheared):
    """A bright column through the middle leans by the tangent of the angle."""
    image = torch.zeros(1, 101, 101)
    image[:, :, 49:52] = 1.0
    for change, lean in ((6, math.tan(sheared)), (7, math.tan(math.radians(rotated)))):
        for coin in (0.1, 0.9):
            changed = idbh.CHANGES[change](image, strength, coin)[0]
            top, bottom = ((row * torch.arange(101.0)).sum() / row.sum() for row in (changed[10], changed[90]))
            if (top - bottom).abs() > 1:  # sheared across; down, a column stays where it is
                assert abs(top - bottom).item() == pytest.approx(80 * lean, abs=1.5)
                break
        else:
            raise AssertionError(f"change {change} never leans")
