"""What the flags say of a row of `also`, for all who hold a record against its flags; promotion does, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

WORD, UNION = "corruptions", "union"


def columns_of(row: dict[str, Any]) -> set[str]:
    """Of the flags, by which a row of the record is borne out."""
    return {"robust", *row["threats"][1:]} if row["what"] == UNION else {row["what"]}


def accuracy_of(row: dict[str, Any], flags: np.ndarray) -> float:
    """What the flags say of a row; of corruptions they hold how many of an image's are classified correctly."""
    if row["what"] == WORD:
        return float(flags[WORD].mean() / (len(row["kinds"]) * len(row["kinds"][0]["by_severity"])))
    return float(np.logical_and.reduce([flags[column] for column in columns_of(row)]).mean())
