"""The sixteen checks as a record tells them: each counted once, by the worst verdict of its parts.

    found = sixteen(evidence.robustness["checks"]);  in_words(found)   # "15 of 16 checks pass, 1 warn"

A check may have several parts (is the network in eval mode? did the attack move its buffers?), a row each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

GRAVITY = ("pass", "not run", "warn", "fail")
ALL = 16


class Judged(NamedTuple):
    number: int
    name: str
    verdict: str
    found: list[str]  # what each part says


def sixteen(rows: Sequence[Mapping[str, Any]]) -> list[Judged]:
    """By number. A part that could not be judged does not spoil one that could."""
    return [
        _joined(number, [r for r in rows if r["number"] == number]) for number in sorted({r["number"] for r in rows})
    ]


def _joined(number: int, parts: list[Mapping[str, Any]]) -> Judged:
    name = parts[0]["name"]
    found = [p["detail"] if p["name"] == name else f"{p['name']}: {p['detail']}" for p in parts]
    judged = [p["verdict"] for p in parts if p["verdict"] != "not run"]
    return Judged(number, name, max(judged, key=GRAVITY.index) if judged else "not run", found)


def worst(checks: Sequence[Judged]) -> str:
    """Of them all; one that was not run, or is not there, is a reason to look."""
    found = {c.verdict for c in checks}
    if "fail" in found:
        return "fail"
    return "pass" if found == {"pass"} and len(checks) == ALL else "warn"


def in_words(checks: Sequence[Judged]) -> str:
    count = Counter(c.verdict for c in checks)
    rest = "".join(f", {count[v]} {v}" for v in ("warn", "fail", "not run") if count[v])
    return f"{count['pass']} of {ALL} checks pass{rest}"
