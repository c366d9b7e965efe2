"""Checks 12, 14 and 15: what lies around the evaluation, and what no attack can see.

Each takes what it judges and returns a verdict; `stages.evaluate` stops at a failed one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autolora.attacks.report import Check
from autolora.diagnostics import NAMES

BEFORE = ("finetune", "merge")  # where a choice could be made


def nothing_chosen(stages: Mapping[str, Any], test: str = "data/prepared/test") -> Check:
    """No stage before `evaluate` depends on the test part, so none can have read it for a choice."""
    readers = [name for name in BEFORE if any(_reads(dep, test) for dep in stages.get(name, {}).get("deps", []))]
    if readers:
        return Check(12, NAMES[12], "fail", f"{', '.join(readers)} depends on {test}")
    return Check(12, NAMES[12], "pass", f"neither {' nor '.join(BEFORE)} depends on {test}")


def _reads(dep: str | Mapping[str, Any], test: str) -> bool:
    """Is `test` this dependency, inside it, or around it? One with settings of its own is {path: settings}."""
    paths = [dep] if isinstance(dep, str) else dep
    parts = [f"{path.rstrip('/')}/" for path in paths]
    return any(f"{test}/".startswith(part) or part.startswith(f"{test}/") for part in parts)


def weights_match(evaluated: Mapping[str, str], recorded: Mapping[str, str]) -> Check:
    """sha256 by name: what was loaded, or for a merged network what it was made of, and what `finetune` wrote down."""
    for name, digest in evaluated.items():
        if recorded.get(name) != digest:
            text = f"{name} has the weights {digest[:12]}, on record are {recorded.get(name, 'none')[:12]}"
            return Check(14, NAMES[14], "fail", text)
    return Check(14, NAMES[14], "pass", ", ".join(f"{name} {digest[:12]}" for name, digest in evaluated.items()))


def read_manifest(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def splits_apart(rows: Sequence[Mapping[str, str]], evaluated: Iterable[str]) -> Check:
    """Equal images in two splits fail; near-duplicates, which `prepare` has marked, warn."""
    elsewhere = {row["sha256"] for row in rows if row["split"] in ("train", "val")}
    ids = set(evaluated)
    same = ids & elsewhere
    if same:
        text = f"{len(same)} evaluated images are also in training or validation, {min(same)[:12]} for one"
        return Check(15, NAMES[15], "fail", text)
    near = {row["sha256"] for row in rows if row["sha256"] in ids and row.get("near_duplicate")}
    if near:
        text = f"{len(near)} of {len(ids)} evaluated images nearly are in training or validation too"
        return Check(15, NAMES[15], "warn", text)
    return Check(15, NAMES[15], "pass", f"none of {len(ids)} evaluated images is in training or validation")
