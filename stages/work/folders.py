"""The folders of `.work`: how large each is, when it was last used, and their removal."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autolora.common.files import AtWork, locked

KEY = re.compile("[0-9a-f]{16}")
DAY = 24 * 3600.0
JUST_NOW = 1 / 24  # days; not every stage holds a lock while it works
MADE_AGAIN = {
    "prepare": "decoded images",
    "finetune": "checkpoints",
    "merge": "points of the dial",
    "evaluate": "attacked images",
    "export": "attacks on files",
    "register": "what is handed to the registry",
}
KEPT = {
    "downloads": "weights and data sets",
    "rebuilds": "results of rebuilds",
    "workspaces": "rebuilds that have not ended",
}


@dataclass(frozen=True)
class Work:
    """One piece of work, whose name is a hash of all that determines it."""

    stage: str
    path: Path
    size: int  # bytes
    used: float  # when: seconds since 1970

    @property
    def days(self) -> float:
        return max(0.0, (time.time() - self.used) / DAY)


def found(root: Path) -> list[Work]:
    """Progress of stages, the longest unused first."""
    works = [_look(stage, path) for stage in MADE_AGAIN for path in _folders(root / stage) if KEY.fullmatch(path.name)]
    return sorted(works, key=lambda work: work.used)


def others(root: Path) -> list[Work]:
    """What lies there and is never removed from here."""
    return [_look(path.name, path) for path in _folders(root) if path.name not in MADE_AGAIN]


def prune(works: list[Work], days: float) -> Iterator[tuple[Work, str]]:
    """Remove what was not used for so long; each with what came of it."""
    for work in works:
        if work.days < days:
            continue
        if work.days < JUST_NOW:
            yield work, "used within the hour: left alone"
            continue
        try:
            with locked(work.path / "lock"):
                shutil.rmtree(work.path)
            yield work, "removed"
        except AtWork:
            yield work, "a process is at it: left alone"
        except OSError as error:
            yield work, f"left alone: {error.strerror}"


def _look(name: str, path: Path) -> Work:
    files = [entry for folder, _, names in os.walk(path) for entry in (os.path.join(folder, n) for n in names)]
    stats = [os.lstat(path), *(os.lstat(file) for file in files if os.path.lexists(file))]
    return Work(name, path, sum(s.st_blocks * 512 for s in stats), max(s.st_mtime for s in stats))


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink()) if path.is_dir() else []
