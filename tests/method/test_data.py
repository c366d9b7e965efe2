"""Augmentation against torchvision and against plain loops; batches that are read from a file."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F

from autolora.data import augmentation, crop_and_flip, cropped, draw_boxes, draw_crops, resized, stream, take


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_resized_crops_are_torchvisions():
    x, boxes = torch.rand(8, 3, 40, 40), draw_boxes(8, 40, 40, seeded())
    for image, box, mine in zip(x, boxes, resized(x, boxes, 32)):
        top, left, height, width, flipped = (int(v) for v in box)
        theirs = F.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        theirs = theirs.flip(-1) if flipped else theirs
        inner = (slice(None), slice(2, -2), slice(2, -2))  # at the rim ours looks one pixel past the box
        assert torch.allclose(mine[inner], theirs[inner], atol=1e-5)


def test_boxes_lie_inside_and_have_the_areas_and_aspects_of_the_paper():
    top, left, height, width, flipped = draw_boxes(4000, 256, 256, seeded()).unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 256
    assert 0.07 < (height * width).min() / 256**2 < 0.1
    assert 0.7 < (width / height).min() < 0.8
    assert 1.25 < (width / height).max() < 1.4
    assert 0.47 < flipped.mean() < 0.53


def test_crops_are_shifts_with_zeros_and_mirrors():
    x = torch.randint(1, 256, (16, 3, 8, 8), dtype=torch.uint8)
    draws = draw_crops(16, seeded(), padding=2)
    for image, (top, left, flipped), mine in zip(x, draws.tolist(), cropped(x, draws, 2)):
        padded = torch.zeros(3, 12, 12, dtype=torch.uint8)
        padded[:, 2:-2, 2:-2] = image
        window = padded[:, top : top + 8, left : left + 8]
        assert torch.equal(mine, window.flip(-1) if flipped else window)
    assert set(draws[:, 2].tolist()) == {0, 1}


def test_crop_alone_never_mirrors():
    assert not augmentation("crop", 16, 16).draw(1000, seeded())[:, 2].any()


@pytest.mark.parametrize(("stored", "size", "rows"), [(32, 32, 3), (256, 224, 5)])
def test_auto_goes_by_size(stored, size, rows):
    assert augmentation("auto", stored, size).draw(2, seeded()).shape == (2, rows)


def test_draws_of_a_part_are_a_part_of_the_draws():
    """What several processes rest on: rows belong to images."""
    x = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8)
    for name in ("crop_flip", "rrc_flip", "crop", "none"):
        augment = augmentation(name, 8, 8)
        draws = augment.draw(10, seeded())
        assert torch.equal(augment.apply(x, draws)[1::3], augment.apply(x[1::3], draws[1::3]))


def test_batches_from_a_file_come_in_order(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = list(torch.randperm(20, generator=seeded()).split(6))
    for index, found in zip(batches, stream(mapped, batches, torch.device("cpu")), strict=True):
        assert np.array_equal(found.numpy(), x[index.numpy()])
        assert torch.equal(found, take(torch.from_numpy(x), index, torch.device("cpu")))


def test_crop_and_flip_keeps_type_and_shape():
    assert crop_and_flip(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), seeded()).dtype == torch.uint8
