"""Images that are attacked: read once, made floats once, moved once, and never hashed where they have ids."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from autolora.data import images as module
from autolora.data.images import TestImages


def some(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, 2, 2), dtype=np.uint8)


def test_bytes_and_floats_are_the_same_images() -> None:
    x = some()
    one, other = TestImages.of(x, range(4)), TestImages.of(torch.from_numpy(x).float() / 255, torch.arange(4))
    assert torch.equal(one.pixels(), other.pixels())
    assert one.ids == other.ids == [hashlib.sha256((i.astype(np.float32) / 255).tobytes()).hexdigest() for i in x]


def test_floats_are_made_once_and_shared() -> None:
    images = TestImages.of(some(), range(4))
    assert images.pixels() is images.pixels("cpu")
    assert images.pixels().data_ptr() == images.floats.ctypes.data


def test_images_with_ids_are_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hashlib", None)
    images = TestImages.of(some(), range(4), ["a", "b", "c", "d"])
    assert images.only([2, 0]).ids == ["c", "a"]
    assert np.array_equal(images.only(np.array([False, True, False, True])).y, [1, 3])
    assert len(images.only([])) == 0


def test_equal_images_are_told_apart() -> None:
    x = np.repeat(some(1), 3, axis=0)
    names = TestImages.of(x, [0, 0, 0]).ids
    assert len(set(names)) == 3
    assert {len(name) for name in names} == {64}  # they are stored in a column
    assert TestImages.of(x[:2], [0, 0]).ids == names[:2]


def test_reading_needs_no_torch(root) -> None:
    """A flow asks the stored images and does not import it."""
    import subprocess
    import sys

    code = (
        "import sys, numpy as np; from autolora.data.images import TestImages;"
        "TestImages(np.zeros((2, 3, 2, 2), np.uint8), np.arange(2), ['a', 'b']).only([1]).floats;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
