"""Decoded once, kept by content: growth decodes what is new, a crash loses little, processes change nothing."""

from __future__ import annotations

import itertools
import os
import signal

import numpy as np
import pytest

from stages.common.runner import StageError
from stages.dataset.decode import decode, decode_whole
from stages.dataset.found import Found
from stages.dataset.image_statistics import described
from stages.dataset.store import Store
from tests.stages.dataset.pictures import fill, picture


def listed(folder):
    return [Found(f.name, f.parent.name, None, str(f)) for f in sorted(folder.glob("*/*.png"))]


@pytest.fixture
def kept(tmp_path):
    (tmp_path / "store").mkdir()
    return lambda: Store(tmp_path / "store", 24)


def test_what_is_read_is_what_was_decoded(tmp_path, kept):
    fill(tmp_path / "raw", images=5)
    store = kept()
    rows = list(store.decode(listed(tmp_path / "raw")))
    read = store.read([row["sha256"] for row in rows])
    for found, row, image in zip(listed(tmp_path / "raw"), rows, read, strict=True):
        with open(found.content, "rb") as file:
            expected, facts = decode(file.read(), 24)
        assert np.array_equal(image, expected)
        assert (facts | described([expected])[0]).items() <= row.items()


def test_pixels_that_vanish_meanwhile_are_no_image(tmp_path, kept):
    fill(tmp_path / "raw", images=5)
    store = kept()
    names = [row["sha256"] for row in store.decode(listed(tmp_path / "raw"))]
    (shard,) = (tmp_path / "store").glob("pixels-*")
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(StageError, match="has become shorter: run again"):
        store.pixels(names)
    with pytest.raises(StageError, match="has become shorter"):
        list(store.read(names))


def test_only_what_is_new_is_decoded(tmp_path, kept):
    fill(tmp_path / "raw", images=6)
    before = kept()
    first = list(before.decode(listed(tmp_path / "raw")))
    fill(tmp_path / "raw", images=3, first=6)
    (tmp_path / "raw/cat/0.png").rename(tmp_path / "raw/dog/renamed.png")
    after = kept()
    second = list(after.decode(listed(tmp_path / "raw")))
    assert (before.decoded, after.decoded) == (12, 6)
    names = [row["sha256"] for row in first]
    assert np.array_equal(before.pixels(names), after.pixels(names))
    assert len(second) == 18


def test_a_bad_image_is_remembered_too(tmp_path, kept):
    (tmp_path / "bad.png").write_bytes(b"no")
    bad = [Found("bad.png", "cat", None, str(tmp_path / "bad.png"))]
    first, second = kept(), kept()
    rows = list(first.decode(bad))
    again = kept()
    assert list(again.decode(bad)) == rows
    assert (first.decoded, again.decoded) == (1, 0)
    assert rows[0]["reason"].startswith("not an image: ")
    assert not second.index


def test_processes_change_nothing(tmp_path, kept):
    """More images than one process does alone; order, facts and pixels are the same."""
    arrays = [Found(str(i), "a", None, np.asarray(picture(i % 300, 16, 16))) for i in range(400)]
    many = kept()
    in_parallel = list(many.decode(iter(arrays), workers=2))
    assert len(list(many.folder.glob("pixels-*"))) >= 1
    names = [row["sha256"] for row in in_parallel]
    pixels = many.pixels(names)
    for file in many.folder.iterdir():
        file.unlink()
    one = kept()
    assert list(one.decode(iter(arrays), workers=1)) == in_parallel
    assert np.array_equal(one.pixels(names), pixels)
    assert len(one.index) == 300


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_pixels_that_went_missing_are_decoded_again(kept, how):
    arrays = [Found(str(i), "a", None, np.full((16, 16), i, np.uint8)) for i in range(10)]
    first = kept()
    names = [row["sha256"] for row in first.decode(arrays)]
    pixels = first.pixels(names)
    (shard,) = first.folder.glob("pixels-*")
    os.truncate(shard, shard.stat().st_size - 100) if how == "cut" else shard.unlink()
    again = kept()
    list(again.decode(arrays))
    assert again.decoded == (1 if how == "cut" else 10)
    assert np.array_equal(again.pixels(names), pixels)


def test_a_crash_loses_only_what_was_under_way(tmp_path, kept):
    arrays = [Found(str(i), "a", None, np.full((8, 8 + i), i % 256, np.uint8)) for i in range(400)]
    with pytest.raises(RuntimeError, match="power cut"):
        list(kept().decode(_breaks_off(arrays, 300), workers=1))
    index = tmp_path / "store/index.jsonl"
    assert len(index.read_text().strip().splitlines()) == 288  # eighteen chunks of 16
    index.write_text(index.read_text()[:-20])  # and the last line was torn
    store = kept()
    rows = list(store.decode(arrays, workers=1))
    assert store.decoded == 400 - 287
    assert [row["reason"] for row in rows] == [""] * 400
    read = store.pixels([row["sha256"] for row in rows])
    assert read[:, 0, 0, 0].tolist() == [i % 256 for i in range(400)]
    assert kept().index.keys() == store.index.keys()


def _breaks_off(found, after):
    yield from itertools.islice(found, after)
    raise RuntimeError("power cut")


def test_the_input_is_not_read_ahead(kept):
    """Memory does not grow with the number of images: few are taken from the source before rows come out."""
    taken = 0

    def source():
        nonlocal taken
        for i in range(5000):
            taken += 1
            yield Found(str(i), "a", None, np.full((8, 8), i % 256, np.uint8))

    rows = kept().decode(source(), workers=2)
    next(rows)
    assert taken < 1000
    rows.close()


def _shot_at_number_300(content, size):
    """What the kernel does to a process that takes too much memory."""
    if content[0, 0] == 44 and content[0, 1] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(content, size)


def _numbered(count):
    """Found arrays, each with its number in the first two bytes."""
    for i in range(count):
        yield Found(f"cat/{i}.png", "cat", None, np.array([[i % 256, i // 256]] * 2, np.uint8))


def test_an_image_whose_decoder_is_killed_is_named(tmp_path, kept):
    """With what to do; what was decoded before is kept, and one that is not killed goes on from there."""
    kept()
    with pytest.raises(StageError, match="AUTOLORA_PROCESSES=1") as error:
        list(Store(tmp_path / "store", 24, _shot_at_number_300).decode(_numbered(900), workers=2))
    named = [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]
    assert "cat/300.png" in named
    assert len(named) <= 2
    assert not list((tmp_path / "store").glob("at-*"))
    store = kept()
    assert len(list(store.decode(_numbered(900), workers=2))) == 900
    assert 0 < store.decoded < 900


@pytest.mark.slow
def test_a_thousand_images_more_decode_a_thousand(tmp_path, kept):
    fill(tmp_path / "raw", images=400)
    before = kept()
    list(before.decode(listed(tmp_path / "raw"), workers=2))
    fill(tmp_path / "raw", images=500, first=400)
    calls = tmp_path / "calls"

    def counted(content, size):
        with open(calls, "ab") as file:
            file.write(b".")  # an append is whole, also from two processes
        return decode(content, size)

    after = Store(tmp_path / "store", 24, counted)
    rows = list(after.decode(listed(tmp_path / "raw"), workers=2))
    assert len(rows) == 1_800
    assert calls.stat().st_size == after.decoded == 1_000


def test_whole_images_keep_both_ends(tmp_path, kept):
    kept()
    store = Store(tmp_path / "store", 24, decode_whole)
    shapes = [(40, 90), (90, 40), (48, 48), (30, 300)]
    images = [np.asarray(picture(k, w, h)) for k, (h, w) in enumerate(shapes)]
    rows = list(store.decode(Found(str(k), "a", None, image) for k, image in enumerate(images)))
    names = [row["sha256"] for row in rows]
    assert store.shapes(names).tolist() == [[24, 54], [54, 24], [24, 24], [24, 96]]
    assert [image.shape[1:] for image in store.read(names)] == [tuple(s) for s in store.shapes(names).tolist()]
    assert store.pixels(names).shape == (4, 3, 24, 24)
    assert np.array_equal(store.pixels(names)[0], next(store.read(names))[:, :, 15:39])
    assert [float(row["mean"]) for row in rows] == pytest.approx(store.pixels(names).mean((1, 2, 3)), abs=0.01)
