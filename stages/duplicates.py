"""The same image twice: which copies are left out, and which images nearly are the same across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from stages.splits import SPLITS


def leave_out_copies(rows: Iterable[dict[str, Any]]) -> None:
    """Give a reason to every row that must not reach training: see `_judge`. Works in place."""
    copies = defaultdict(list)
    for row in rows:
        if not row["reason"]:
            copies[row["sha256"]].append(row)
    for group in copies.values():
        if len(group) > 1:
            _judge(group)


def _judge(group: list[dict[str, Any]]) -> None:
    """Under two labels: nobody knows which is right, all are left out. In two splits: the copy that is furthest from
    training stays, so that the test part is what its authors made it. Else the first stays."""
    if len({row["label"] for row in group}) > 1:
        for row in group:
            other = next(r for r in group if r["label"] != row["label"])
            row["reason"] = f"two labels: the same image is {other['label']} as {other['path']}; keep the right one"
        return
    stays = max(group, key=lambda row: SPLITS.index(row["split"]))
    for row in group:
        if row is not stays and row["split"] != stays["split"]:
            row["reason"] = f"two splits: the same image is in {stays['split']} as {stays['path']}; remove one"
        elif row is not stays:
            row["reason"] = f"repeated: the same image as {stays['path']}; remove one"
