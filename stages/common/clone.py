"""The clone that a folder is a temporary copy of: there lies what must outlive the copy (MLflow's database, .work).

DVC runs `dvc exp run --temp` and `--queue` in a copy that it deletes at the end; `git worktree` makes others.
"""

from __future__ import annotations

from pathlib import Path

COPIES = (".dvc", "tmp", "exps")  # where DVC puts them, inside the clone


def clone_of(folder: str | Path = ".") -> Path:
    """The clone, whole; the folder itself where it is no copy."""
    here = Path(folder).resolve()
    for place in (here, *here.parents):
        if place.parts[-len(COPIES) :] == COPIES:
            return clone_of(place.parents[len(COPIES) - 1])  # the copy may be of a worktree
    return _main_worktree(here) or here


def seen_from_clone(path: str | Path) -> Path:
    """A relative path as it is meant in the clone; nothing changes where we stand in it."""
    clone = clone_of()
    return Path(path) if clone == Path.cwd().resolve() else clone / path


def _main_worktree(here: Path) -> Path | None:
    """In a worktree `.git` is a file that names CLONE/.git/worktrees/NAME; in a submodule it names no worktree."""
    file = here / ".git"
    if not file.is_file():
        return None
    named = here / file.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    if named.parent.name != "worktrees" or named.parents[1].name != ".git":
        return None
    return named.parents[2].resolve()
