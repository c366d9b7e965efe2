"""What a source finds: one image, or the place where there should be one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Found(NamedTuple):
    """One image as a source finds it."""

    path: str  # as the manifest shows it
    label: str
    split: str | None  # None: to be drawn
    content: str | np.ndarray | None  # a file, or uint8 [h,w] or [h,w,3]; None where `reason` says why
    reason: str = ""
