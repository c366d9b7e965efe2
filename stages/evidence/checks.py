"""The sixteen checks as a record tells them: each counted once, by the worst verdict of its parts.

found = sixteen(evidence.robustness["checks"]);  in_words(found)   # "15 of 16 checks pass, 1 warn"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from autolora.attacks.verdicts import NAMES, Check, Verdict, one_each

# What has happened where the check of that number warns or fails: "warn: enough images" would say the opposite.
FAULTS = {
    1: "not in eval mode, or changed by the attack",
    2: "predictions depend on the batch",
    3: "pixels are not those of images in [0,1]",
    4: "eps in the wrong unit",
    5: "outside ball or box",
    6: "probabilities, not logits",
    7: "the network answers at random",
    8: "masked gradients",
    9: "black box beats white box",
    10: "the attack is too weak, or labels are of other images",
    11: "too few images",
    12: "something was chosen on the test part",
    13: "robust and wrong when clean",
    14: "other weights than those that ship",
    15: "images in two splits, or nearly",
    16: "low precision",
}


def title(check: Check) -> str:
    return FAULTS[check.number] if check.verdict in ("warn", "fail") else check.name


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
