"""Where a model comes from: the revision of the code, the version of the data, the parameters each stage ran with."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from stages.common.errors import StageError
from stages.common.params import Finetune, Merge
from stages.common.recipes import with_recipe

SETTINGS = {"params.yaml", "dvc.lock"}  # no code: what stages ran with is in dvc.lock


def locked_params(folder: Path) -> dict[str, Any]:
    """Every parameter as each stage really ran with it: dvc.lock knows, params.yaml may have changed since. A recipe is
    filled in; `register` asks its own params, since dvc.lock has those of the registration before.
    """
    found: dict[str, Any] = {}
    for name, stage in _lock(folder).get("stages", {}).items():
        if name != "register":
            found |= stage.get("params", {}).get("params.yaml", {})
    with suppress(StageError):  # a recipe of one's own that is no longer there
        return with_recipe(found, {"finetune": Finetune, "merge": Merge})
    return found


def provenance_of(folder: Path) -> dict[str, str]:
    """Where the model comes from: revision of the code, version of the data, hash of the lock."""
    outs = _lock(folder).get("stages", {}).get("prepare", {}).get("outs", [])
    data = {out["path"]: out.get("md5", "") for out in outs}
    found = {
        "git_revision": git(folder, "rev-parse", "HEAD") or "",
        **_uncommitted(
            git(folder, "diff", "--name-only", "--relative", "HEAD"),
            git(folder, "ls-files", "--others", "--exclude-standard"),
        ),
        "data_version": data.get("data/prepared", ""),
    }
    return {key: value for key, value in found.items() if value}


def _uncommitted(listed: str | None, new: str | None) -> dict[str, str]:
    """Changes to code, and to settings; neither is claimed where git could not say: no repository, a disk too slow.

    Of new files those count that a stage may read: code, and recipes. Images and notes beside them do not.
    """
    if listed is None or new is None:
        return {"git_dirty": "unknown"}
    changed = set(listed.splitlines()) | {name for name in new.splitlines() if name.endswith((".py", ".yaml"))}
    return {
        "git_dirty": "yes" if changed - SETTINGS else "no",
        "git_params": "changed" if changed & SETTINGS else "",
    }


def altered(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of these are not what dvc.lock says that a stage wrote: edited since, or of another run."""
    outs = [out for stage in _lock(folder).get("stages", {}).values() for out in stage.get("outs", [])]
    written = {out["path"]: out["md5"] for out in outs if "md5" in out}
    return [name for name in names if name in written and _md5(folder / name) != written[name]]


def _md5(path: Path) -> str:
    """As DVC computes it; of a folder, over the list of its files."""
    if not path.is_dir():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.is_file() else "not there"
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listed = [{"md5": _md5(files[name]), "relpath": name} for name in sorted(files)]
    return f"{hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest()}.dir"


def _lock(folder: Path) -> dict[str, Any]:
    path = folder / "dvc.lock"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where it cannot: no git, no repository, no answer in time."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None
