"""What `evaluate.also` asks for, of the network that ships and of its natural twin: rows of the record, columns of the
flags.

Each row says: what, accuracy, ci95, and the same of the twin (`baseline`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autolora.attacks.also import Also
from autolora.attacks.report import Report


def columns(ours: Also, twin: Also) -> dict[str, np.ndarray]:
    """Of the flags; the union follows from them."""
    return ours.columns() | {f"baseline_{what}": column for what, column in twin.columns().items()}


def rows(ours: Also, twin: Also, main: tuple[Report, Report], side: int) -> list[dict[str, Any]]:
    """Of the record; `main` are the reports of the threat in params.yaml."""
    mine, theirs = ours.rows(main[0], side, _of_threat), twin.rows(main[1], side, _of_threat)
    return [_beside(row, other) for row, other in zip(mine, theirs, strict=True)]


def _beside(row: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    shares = {key: row[key] for key in ("what", "accuracy", "ci95")}
    found = shares | {"baseline": {key: twin[key] for key in ("accuracy", "ci95")}} | row
    if "kinds" in row:
        pairs = zip(row["kinds"], twin["kinds"], strict=True)
        found["kinds"] = [kind | {"baseline": other["accuracy"]} for kind, other in pairs]
    return found


def _of_threat(report: Report) -> dict[str, Any]:
    known = report.as_record()
    kept = {key: known[key] for key in ("threat", "version", "deviation", "attacks")}
    return kept | {"objections": [check for check in known["checks"] if check["verdict"] == "warn"]}
