"""Which image goes where: by a hash of seed and content against a threshold, so that no image ever moves.

Shares hold in expectation. Adding images, renaming them or reordering them changes the split of none that was there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

SPLITS = ("train", "val", "test")


def place(seed: int, sha256: str, part: str) -> float:
    """Uniform in [0,1), and fixed for ever by seed, content and part."""
    digest = hashlib.sha256(f"{seed} {part} {sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def draw(
    seed: int, sha256: str, given: str | None, parts: set[str | None], validation_fraction: float, test_fraction: float
) -> str:
    """The split of one image. `parts` are those that the images of the set are given, None among them where some are
    given none: these are drawn, whatever the others are; and from the given training part what nobody else is in."""
    if given in ("val", "test"):
        return given
    if drawn("test", given, parts) and place(seed, sha256, "test") < test_fraction:
        return "test"
    if drawn("val", given, parts) and place(seed, sha256, "val") < validation_fraction:
        return "val"
    return "train"


def drawn(part: str, given: str | None, parts: set[str | None]) -> bool:
    """Whether an image of this given part may go to `part`."""
    return given is None or not parts & {part, None}


def fraction_that_would_do(seed: int, classes: Sequence[Sequence[str]], part: str) -> float:
    """The smallest fraction, in hundredths, at which every class has an image in `part`; above 1 where none does."""
    smallest = (min((place(seed, sha, part) for sha in members), default=1.0) for members in classes)
    return math.floor(100 * max(smallest, default=0.0) + 1) / 100
