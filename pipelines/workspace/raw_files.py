"""What stages read, git does not keep and DVC does not make (images, weights), as a workspace finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from pipelines.workspace import dvc_graph as graph
from pipelines.workspace.commits import PARAMS_FILE, READ_LIKE_CODE, belongs_to_dvc, git

NAMES_OF_FILES = [("backbone", "weights"), ("finetune", "teacher"), ("finetune", "natural_teacher")]
NAMES_OF_FILES += [("data", "reference_manifest")]


def link_raw_files(source: Path, folder: Path) -> None:
    """What stages read, git does not keep and DVC does not make (images, weights): links to the files beside us."""
    for path in raw_paths(folder):
        if READ_LIKE_CODE in path.parents:
            continue
        if (source / path).is_dir() or _ignored(source, path):  # new code is not raw data: it has to be committed
            _link(source, folder, path)
    for path in named_files(folder):
        if (source / path).is_file() and _ignored(source, path):
            _link(source, folder, path)


def _ignored(source: Path, path: Path) -> bool:
    return subprocess.run(["git", "check-ignore", "--quiet", str(path)], cwd=source).returncode == 0


def raw_paths(folder: Path) -> list[Path]:
    """Dependencies inside the repository that no stage writes."""
    with graph.opened(folder) as repo:
        outs = [Path(out.fs_path).absolute() for out in repo.index.outs]
        deps = {Path(dep.fs_path).absolute() for dep in repo.index.deps if dep.protocol == "local"}
    return [dep.relative_to(folder) for dep in sorted(deps) if folder in dep.parents and not belongs_to_dvc(dep, outs)]


def named_files(folder: Path) -> Iterator[Path]:
    """Those of params.yaml inside the repository that are no dependencies: of weights a sha256 is on record instead."""
    params = yaml.safe_load((folder / PARAMS_FILE).read_text(encoding="utf-8")) or {}
    for section, key in NAMES_OF_FILES:
        named = (params.get(section) or {}).get(key)
        path = Path(named) if isinstance(named, str) else Path("..")
        if not path.is_absolute() and ".." not in path.parts and path.name:
            yield path


def _link(source: Path, folder: Path, path: Path) -> None:
    """One link for a whole folder: what is a link inside it, or leads out of it, no reader of images follows."""
    there, here = source / path, folder / path
    if not there.exists() or here.is_file():
        return
    if here.is_dir():  # git keeps a part of it (data/raw/README.md)
        if not _same_in_git(source, folder, path):
            return _fill(there, here)
        kept = git(folder, "ls-files", "-z", "--", str(path)).rstrip("\0").split("\0")
        git(folder, "update-index", "--skip-worktree", "--", *kept)  # or the workspace would count as changed
        shutil.rmtree(here)
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(there, target_is_directory=there.is_dir())


def _same_in_git(source: Path, folder: Path, path: Path) -> bool:
    """Does `source` hold what the workspace's commit keeps of this folder?"""
    commit = git(folder, "rev-parse", "HEAD").strip()
    return subprocess.run(["git", "diff", "--quiet", commit, "--", str(path)], cwd=source).returncode == 0


def _fill(there: Path, here: Path) -> None:
    """Beside the commit's own files all others, as hard links, or copies where a file system has none."""
    here.mkdir(exist_ok=True)
    for entry in there.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _fill(entry, here / entry.name)
        elif not (here / entry.name).exists():
            try:
                os.link(entry, here / entry.name, follow_symlinks=False)
            except OSError:
                shutil.copy2(entry, here / entry.name, follow_symlinks=False)
