"""How many images there are, and how long one takes to decode, before anything is prepared."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stages.common.params import Data
from stages.dataset.decode import BadImage, decode, read_file, silent
from stages.dataset.found import Found
from stages.dataset.official import PUBLISHED
from stages.dataset.sources import SOURCES
from stages.dataset.splits import drawn
from stages.estimate.costs import Counts

LOOKED_AT = 24  # images that are decoded to learn how long one takes


class Images(NamedTuple):
    counts: Counts
    decoding: float | None  # seconds an image; None where the images are not here yet


def look(data: Data) -> Images:
    """What the source lists; a published set that is not here has the counts that its authors say."""
    path, published = Path(data.path), PUBLISHED.get(data.source)
    if published and not (path / published.marker).exists():
        return Images(shared_out(published.counts, published.classes, data), None)
    splits, labels, some = Counter[str | None](), set[str](), list[Found]()
    for found in SOURCES[data.source](path):
        if found.content is not None:
            splits[found.split] += 1
            labels.add(found.label)
            some += [found] * (len(some) < LOOKED_AT)
    return Images(shared_out(splits, len(labels), data), _decoding(some, data.stored_size or data.image_size))


def shared_out(given: Mapping[str, int] | Mapping[str | None, int], classes: int, data: Data) -> Counts:
    """Into the three parts, by the fractions, as splits.draw does it."""
    parts, found = set[str | None](given), {"train": 0.0, "val": 0.0, "test": 0.0}
    for split, n in given.items():
        if split in ("val", "test"):
            found[split] += n
            continue
        test = n * data.test_fraction * drawn("test", split, parts)
        val = (n - test) * data.validation_fraction * drawn("val", split, parts)
        for part, count in (("test", test), ("val", val), ("train", n - test - val)):
            found[part] += count
    return Counts(round(found["train"]), round(found["val"]), round(found["test"]), classes)


def _decoding(some: list[Found], size: int) -> float:
    start = time.perf_counter()
    with silent():
        for found in some:
            try:
                decode(read_file(found.content) if isinstance(found.content, str) else found.content, size)  # type: ignore[arg-type]
            except BadImage:
                continue
    return (time.perf_counter() - start) / max(1, len(some))
