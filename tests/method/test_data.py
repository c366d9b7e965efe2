"""Augmentation against torchvision and against plain loops; batches that are read from a file."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F

from autolora.data import batches
from autolora.data.batches import (
    AUGMENTATIONS,
    augmentation,
    boxes,
    centre,
    crop_and_flip,
    cropped,
    draw_boxes,
    draw_crops,
    place,
    resized,
    stream,
    take,
)
from autolora.data.images import TestImages
from autolora.data.ragged import moved, rectangles, sampled
from autolora.data.sample import stratified
from tests.oracle import sampling

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_resized_crops_are_torchvisions():
    x, chosen = torch.rand(8, 3, 40, 40), boxes(draw_boxes(8, seeded()), torch.full((8, 2), 40))
    for image, box, mine in zip(x, chosen, resized(x, chosen, 32)):
        top, left, height, width, flipped = (int(v) for v in box)
        theirs = F.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        theirs = theirs.flip(-1) if flipped else theirs
        inner = (slice(None), slice(2, -2), slice(2, -2))  # at the rim ours looks one pixel past the box
        assert torch.allclose(mine[inner], theirs[inner], atol=1e-5)


def test_boxes_lie_inside_and_have_the_areas_and_aspects_of_the_paper():
    top, left, height, width, flipped = boxes(draw_boxes(4000, seeded()), torch.full((4000, 2), 256)).unbind(1)
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


@pytest.mark.parametrize(("stored", "size", "rows"), [(32, 32, 3), (256, 224, 23)])
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


def oblong(sides):
    """Random images of these heights and widths, one by one and as rectangles."""
    images = [np.random.default_rng(h * w).integers(0, 256, (3, h, w), dtype=np.uint8) for h, w in sides]
    return images, rectangles(np.concatenate([i.reshape(-1) for i in images]), np.array(sides))


def test_boxes_reach_every_part_of_a_long_image():
    shapes = torch.tensor([[32, 96], [96, 32]]).repeat(2000, 1)
    top, left, height, width, _ = boxes(draw_boxes(4000, seeded()), shapes).unbind(1)
    assert (top + height <= shapes[:, 0]).all()
    assert (left + width <= shapes[:, 1]).all()
    assert left[::2].min() == top[1::2].min() == 0
    assert (left + width)[::2].max() == (top + height)[1::2].max() == 96


def test_crops_of_rectangles_are_torchvisions():
    images, packed = oblong([(40, 90), (70, 40), (40, 40), (41, 55)])
    chosen = boxes(draw_boxes(4, seeded()), packed.shapes)
    for image, box, mine in zip(images, chosen, sampled(packed.to(CPU), chosen, 32)):
        top, left, height, width, flipped = (int(v) for v in box)
        theirs = F.resized_crop(torch.from_numpy(image) / 255, top, left, height, width, [32, 32], antialias=False)
        theirs = theirs.flip(-1) if flipped else theirs
        inner = (slice(None), slice(2, -2), slice(2, -2))
        assert torch.allclose(mine[inner], theirs[inner], atol=1e-5)


def test_squares_are_rectangles_like_others():
    x = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8)
    packed, draws = rectangles(x.reshape(-1), torch.full((6, 2), 24)), draw_boxes(6, seeded())
    assert torch.equal(centre(packed, 16), centre(x, 16))
    assert packed.shape == tuple(x.shape)
    augment = augmentation("auto", 24, 16)
    assert torch.allclose(augment.apply(packed, draws), augment.apply(x, draws), atol=1e-5)


def test_rectangles_from_a_file_are_those_in_memory(tmp_path):
    images, packed = oblong([(8, 8 + k % 7) if k % 2 else (8 + k % 5, 8) for k in range(20)])
    np.save(tmp_path / "x.npy", packed.flat)
    mapped, here = rectangles(np.load(tmp_path / "x.npy", mmap_mode="r"), packed.shapes), place(packed, CPU)
    batches = list(torch.randperm(20, generator=seeded()).split(6))
    for index, found in zip(batches, stream(mapped, batches, CPU), strict=True):
        assert found.nbytes == len(found.flat)  # the batch, and nothing else
        draws = augmentation("rrc_flip", 8, 8).draw(len(index), seeded())
        both = [augmentation("rrc_flip", 8, 8).apply(some, draws) for some in (found, take(here, index, CPU))]
        assert torch.equal(*both)
    assert np.array_equal(mapped[3:5], np.concatenate([images[3].reshape(-1), images[4].reshape(-1)]))


def test_the_middle_of_rectangles_is_the_middle_of_each():
    images, packed = oblong([(8, 14), (12, 8), (8, 8), (9, 11)])
    for image, mine in zip(images, centre(packed.to(CPU), 8)):
        top, left = (image.shape[1] - 8) // 2, (image.shape[2] - 8) // 2
        assert np.array_equal(mine.numpy(), image[:, top : top + 8, left : left + 8])


@pytest.mark.parametrize("seed", range(3))
def test_resized_crops_keep_their_bits(seed):
    x = torch.randint(0, 256, (16, 3, 60, 60), dtype=torch.uint8, generator=seeded(seed))
    draws = draw_boxes(16, seeded(seed))
    expected = sampling.resized(x.float() / 255, boxes(draws, torch.full((16, 2), 60)), 48)
    assert torch.equal(augmentation("auto", 60, 48).apply(x, draws), expected)


@pytest.mark.parametrize("seed", range(3))
def test_resized_crops_of_rectangles_keep_their_bits(seed):
    images, packed = oblong([(60, 60 + 9 * k) if k % 2 else (60 + 7 * k, 60) for k in range(16)])
    draws = draw_boxes(16, seeded(seed))
    expected = sampling.sampled([torch.from_numpy(i) for i in images], boxes(draws, packed.shapes), 48)
    assert torch.equal(augmentation("auto", 60, 48).apply(packed.to(CPU), draws), expected)


def both_kinds():
    """Five images to vary, as a tensor and as rectangles."""
    x = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8, generator=seeded())
    return x, oblong([(24, 30), (28, 24), (24, 24), (25, 29), (24, 40)])[1].to(CPU)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_all_that_an_augmentation_makes_is_made_where_the_images_are(name):
    """What names no device would be made on another one here, and not go together with the images."""
    augment = augmentation(name, 24, 16)
    draws = augment.draw(5, seeded())
    for images in both_kinds():
        expected = augment.apply(images, draws)
        with torch.device("meta"):
            found = augment.apply(images, draws)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_few_numbers_an_image_go_to_the_device_and_no_grid(monkeypatch, name):
    def seen(values, device):
        numbers.append(values.numel())
        return moved(values, device)

    numbers: list[int] = []
    monkeypatch.setattr("autolora.data.batches.moved", seen)
    monkeypatch.setattr("autolora.data.ragged.moved", seen)
    augment = augmentation(name, 24, 16)
    for images in both_kinds():
        numbers.clear()
        augment.apply(images, augment.draw(5, seeded()))
        assert sum(numbers) <= 5 * 8


def test_rectangles_of_other_sizes_than_said_are_refused():
    with pytest.raises(ValueError, match="prepare them again"):
        rectangles(np.zeros(100, np.uint8), np.array([[5, 5], [5, 4]]))


def test_images_beyond_the_memory_stay_in_their_file():
    images = np.zeros((2, 3, 8, 8), np.uint8)
    assert place(images, torch.device("cpu"), memory=3 * 8 * 8) is images
    assert isinstance(place(images[:1], torch.device("cpu"), memory=3 * 8 * 8), torch.Tensor)


@pytest.mark.parametrize(("size", "most"), [(8, 1), (16, 2), (32, 4), (4, 1)])
def test_crops_move_by_an_eighth_of_the_side(size, most):
    draws = augmentation("crop", size, size).draw(1000, torch.Generator().manual_seed(0))
    assert set(draws[:, :2].flatten().tolist()) == set(range(2 * most + 1))


def test_images_may_take_a_quarter_of_what_is_free(monkeypatch):
    images, device = np.zeros((2, 3, 8, 8), np.uint8), torch.device("cpu")
    monkeypatch.setattr(batches, "free_memory", lambda device: 4 * images.nbytes)
    assert isinstance(place(images, device), torch.Tensor)
    monkeypatch.setattr(batches, "free_memory", lambda device: 4 * images.nbytes - 4)
    assert place(images, device) is images


def test_which_classes_have_a_last_turn_is_chance():
    """Of ten classes seven have a turn: all seeds together, each of them."""
    labels = np.arange(100) % 10
    images = TestImages(np.zeros((100, 3, 1, 1), np.uint8), labels, [f"{i:03d}" for i in range(100)])
    seen = [set(stratified(images, 7, seed).y.tolist()) for seed in range(20)]
    assert {len(classes) for classes in seen} == {7}
    assert set().union(*seen) == set(range(10))
