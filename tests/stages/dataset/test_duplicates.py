"""Near-duplicates against comparing all with all, and on real textures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from stages.dataset.decode import decode
from stages.dataset.duplicates import DISTANCE, candidates, near_duplicates
from stages.dataset.image_statistics import described
from tests.stages.dataset.pictures import encoded, picture


def hashes(n: int, rng: np.random.Generator) -> np.ndarray:
    """Half of all bits are the same in most images, as in photos on one background."""
    bits = rng.integers(0, 2, (n, 256), dtype=np.uint8)
    bits[:, :128] &= rng.random((n, 128)) < 0.2
    return np.packbits(bits, axis=1)


def plant(found: np.ndarray, left: np.ndarray, right: np.ndarray, rng: np.random.Generator) -> set[tuple[int, int]]:
    """Pairs that differ in 0, 1, ..., 15 bits: exactly the distance up to which all are to be found."""
    pairs = set()
    for differing, (a, b) in enumerate(zip(left[: DISTANCE + 1], right[: DISTANCE + 1])):
        bits = np.unpackbits(found[b])
        bits[rng.choice(256, differing, replace=False)] ^= 1
        found[a] = np.packbits(bits)
        pairs.add((int(a), int(b)))
    return pairs


def test_candidates_are_those_of_comparing_all_with_all():
    rng = np.random.default_rng(0)
    found, left, right = hashes(1500, rng), np.arange(400), np.arange(400, 1500)
    planted = plant(found, left, right, rng)
    distances = np.bitwise_count(found[left][:, None] ^ found[right][None]).sum(2)
    every = {(int(left[a]), int(right[b])) for a, b in np.argwhere(distances <= DISTANCE)}
    pairs, distance = candidates(found, left, right)
    assert {tuple(p) for p in pairs.tolist()} == every >= planted
    assert all(distances[a, b - 400] == d for (a, b), d in zip(pairs.tolist(), distance))


def test_among_ten_thousand_all_planted_pairs_are_found():
    rng = np.random.default_rng(1)
    found, left, right = hashes(10_000, rng), np.arange(2000), np.arange(2000, 10_000)
    planted = plant(found, left, right, rng)
    assert {tuple(p) for p in candidates(found, left, right)[0].tolist()} >= planted


def variants(image: Image.Image) -> dict[str, bytes]:
    width, height = image.size
    return {
        "as JPEG": encoded(image, "JPEG", quality=85),
        "smaller": encoded(image.resize((width * 4 // 5, height * 4 // 5), Image.Resampling.BICUBIC)),
        "brighter": encoded(ImageEnhance.Brightness(image).enhance(1.08)),
    }


def phashes(pixels: np.ndarray) -> list[str]:
    return [facts["phash"] for facts in described(pixels)]


@pytest.mark.parametrize("variant", ["as JPEG", "smaller", "brighter"])
def test_a_changed_copy_is_found_and_nothing_else(variant):
    originals = [picture(i, 200, 160) for i in range(60)]
    contents = [encoded(image) for image in originals] + [variants(originals[i])[variant] for i in range(10)]
    splits = ["train"] * 50 + ["val"] * 10 + ["test"] * 10
    pixels = np.stack([decode(content, 64)[0] for content in contents])
    found = near_duplicates(phashes(pixels), splits, lambda some: pixels[some])
    assert found == {60 + i: i for i in range(10)}


def test_images_of_one_split_are_no_leak():
    pixels = np.stack([decode(encoded(picture(0)), 32)[0]] * 3)
    assert near_duplicates(phashes(pixels), ["test"] * 3, lambda some: pixels[some]) == {}


def test_blank_images_are_not_each_others_copies():
    pixels = np.stack([decode(np.full((32, 32, 3), grey, np.uint8), 32)[0] for grey in (0, 90, 255)])
    assert near_duplicates(phashes(pixels), ["train", "val", "test"], lambda some: pixels[some]) == {}


def test_real_photos(shared):
    """100 photos in training; of 20 a saved-again copy is in the test part, and 80 other photos are."""
    files = sorted((shared / "data/trashnet/paper").glob("*.jpg"))[:180]
    contents = [file.read_bytes() for file in files]
    copies = [encoded(Image.open(io.BytesIO(c)), "JPEG", quality=80) for c in contents[:20]]
    pixels = np.stack([decode(content, 64)[0] for content in contents[:100] + copies + contents[100:]])
    splits = ["train"] * 100 + ["test"] * 100
    found = near_duplicates(phashes(pixels), splits, lambda some: pixels[some])
    assert sum(found.get(100 + i) == i for i in range(20)) >= 18
    assert not [left for left in found if left >= 120]
