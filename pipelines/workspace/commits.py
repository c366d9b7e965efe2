"""What git says of a clone: which commit a name stands for, and what lies there that is in none."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.workspace import dvc_graph as graph

OWN = ("dvc.lock", ".gitignore")  # DVC writes both
PARAMS_FILE = "params.yaml"  # what a run is given, not what it is made from: it is recorded with the run
READ_LIKE_CODE = Path("presets")  # recipes are part of a commit, though a stage depends on their folder


class WorkspaceError(ValueError):
    pass


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise WorkspaceError(f"git {' '.join(arguments)} in {folder}: {done.stderr.strip()}")
    return done.stdout


def resolve(folder: Path, revision: str) -> str:
    """The commit that a branch, tag or hash stands for; a worker's clone asks its remotes for what it does not have."""
    if not revision.isprintable():
        raise WorkspaceError(f"revision {revision!r}: expected a commit, a branch or a tag")
    for last in (False, True):
        for name in (revision, f"origin/{revision}")[: 1 + last]:  # a branch that only the remote has
            with suppress(WorkspaceError):
                return git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
        if not last:
            fetch_all(folder)
    raise WorkspaceError(
        f"revision {revision!r} does not exist in {folder}, nor in its remotes: `git log --oneline --all` lists what "
        "there is"
    )


def fetch_all(folder: Path) -> None:
    """Also into a clone that has one branch, and of that the last commit, as pods make it. No remote, or none that
    answers: whoever asked says what is missing.
    """
    with suppress(WorkspaceError):
        shallow = git(folder, "rev-parse", "--is-shallow-repository").strip() == "true"
        more = ["--unshallow"] if shallow else []
        git(folder, "fetch", "--quiet", "--tags", *more, "origin", "+refs/heads/*:refs/remotes/origin/*")
    with suppress(WorkspaceError):
        git(folder, "fetch", "--quiet", "--all", "--tags")


def refuse_uncommitted(folder: Path, instead: str = "") -> None:
    """What a run was made from must be a commit; DVC's own files and outputs may differ."""
    changed = uncommitted(folder)
    if changed:
        shown = ", ".join(changed[:8]) + (f" and {len(changed) - 8} more" if len(changed) > 8 else "")
        raise WorkspaceError(f"{folder} has changes that are not committed: {shown}. Commit them{instead}")


def uncommitted(folder: Path) -> list[str]:
    """Changed files, and new ones that a stage reads as code, relative to the top of the repository.

    DVC's outputs, dvc.lock and params.yaml may differ: they are recorded with each run. New files in a folder that a
    stage reads (images, weights) are data: DVC knows them by their hash. Nobody reads other new files.
    """
    entries = git(folder, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", ".").split("\0")
    top = Path(git(folder, "rev-parse", "--show-toplevel").strip())
    with graph.opened(folder) as repo:
        outs = [Path(out.fs_path).absolute() for out in repo.index.outs]
        read = {Path(dep.fs_path).absolute() for dep in repo.index.deps if dep.protocol == "local"}
    found = []
    for status, name in ((entry[:2], entry[3:]) for entry in entries if entry):
        file = top / name
        if not belongs_to_dvc(file, outs) and file != folder / PARAMS_FILE and (status != "??" or _code(file, read)):
            found.append(name)
    return found


def _code(file: Path, read: set[Path]) -> bool:
    """A file that a stage names, a module beside modules that stages name, or a recipe."""
    code = {path.parent for path in read if path.suffix == ".py"}
    recipes = {path for path in read if path.parent.name == READ_LIKE_CODE.name}
    return file in read or (file.suffix == ".py" and file.parent in code) or file.parent in recipes


def require_committed(folder: Path, file: str) -> None:
    with suppress(WorkspaceError):
        git(folder, "ls-files", "--error-unmatch", "--", file)
        return
    raise WorkspaceError(f"{file} is not committed, and a workspace sees only what is: commit it first")


def changed_params(folder: Path) -> bool:
    return bool(git(folder, "status", "--porcelain", "--", PARAMS_FILE))


def belongs_to_dvc(file: Path, outs: Sequence[Path]) -> bool:
    return file.name in OWN or any(file == out or out in file.parents for out in outs)
