"""The sixteen checks as a record tells them: each counted once, by the worst verdict of its parts.

found = sixteen(evidence.robustness["checks"]);  in_words(found)   # "15 of 16 checks pass, 1 warn"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autolora.attacks.verdicts import NAMES, Check, Verdict, one_each


def sixteen(rows: Sequence[Mapping[str, Any]]) -> list[Check]:
    """By number; an early record has a row for each part of a check."""
    return one_each([Check(**row) for row in rows])


def worst(checks: Sequence[Check]) -> Verdict:
    """Of them all; one that was not run, or is not there, is a reason to look."""
    found = {c.verdict for c in checks}
    if "fail" in found:
        return "fail"
    return "pass" if found == {"pass"} and len(checks) == len(NAMES) else "warn"


def in_words(checks: Sequence[Check]) -> str:
    count = Counter(c.verdict for c in checks)
    rest = "".join(f", {count[v]} {v}" for v in ("warn", "fail", "not run") if count[v])
    return f"{count['pass']} of {len(NAMES)} checks pass{rest}"
