"""Checks 12, 14 and 15: what lies around the evaluation, and what no attack can see.

Each takes what it judges and returns a verdict; `stages.evaluate` stops at a failed one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autolora.attacks.verdicts import NAMES, Check

MADE_BY = ("finetune", "merge")  # what must lie before `evaluate`; these and all that they build on could choose


def nothing_chosen(stages: Mapping[str, Any], test: str = "data/prepared/test") -> Check:
    """No stage that the evaluated network comes from depends on the test part, so none has read it for a choice."""
    behind = [name for name in _behind("evaluate", stages) if not _touches(stages[name].get("outs", []), test)]
    if missing := [name for name in MADE_BY if name not in behind]:
        return Check(12, NAMES[12], "fail", f"dvc.yaml has no stage {' and '.join(missing)} before evaluate")
    readers = [name for name in behind if _touches(stages[name].get("deps", []), test)]
    if readers:
        return Check(12, NAMES[12], "fail", f"{', '.join(readers)} depends on {test}")
    return Check(12, NAMES[12], "pass", f"of {', '.join(behind)} none depends on {test}")


def _behind(name: str, stages: Mapping[str, Any]) -> list[str]:
    """All stages whose outputs this one builds on, near or far."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        deps = stages.get(waiting.pop(), {}).get("deps", [])
        for other in stages.keys() - found - {name}:
            if any(_touches(deps, out) for out in _paths(stages[other].get("outs", []))):
                found.add(other)
                waiting.append(other)
    return [other for other in stages if other in found]


def _paths(entries: Iterable[Any]) -> list[str]:
    """An entry with settings of its own is {path: settings}."""
    return [path.rstrip("/") for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]


def _touches(entries: Iterable[Any], path: str) -> bool:
    """Is one of these the path, inside it, or around it?"""
    return any(f"{path}/".startswith(f"{p}/") or f"{p}/".startswith(f"{path}/") for p in _paths(entries))


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
    used = (row for row in rows if not row.get("reason"))  # what `prepare` left out is in no split
    elsewhere = {row["sha256"] for row in used if row["split"] in ("train", "val")}
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
