"""Where a rebuild works: here, or in a fresh git worktree of its own that shares DVC's cache.

One rebuild at a time per workspace. A worktree sees what is committed, the overrides, and the raw files that git does
not keep (linked in, so that DVC finds the same hashes); outputs of earlier runs come from the shared cache.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autolora.common.files import AtWork, locked, read_json
from pipelines.workspace import dvc_graph as graph
from pipelines.workspace.commits import PARAMS_FILE, WorkspaceError, git, resolve
from pipelines.workspace.params_file import override, use_preset
from pipelines.workspace.raw_files import link_raw_files

LONGEST = 60  # letters of a folder's name


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two rebuilds never work in one folder; the lock dies with its holder."""
    file = folder / ".dvc" / "tmp" / "rebuild.lock"
    owner = file.with_suffix(".pid")
    try:
        with locked(file):
            owner.write_text(str(os.getpid()))
            remove_half_written_rwlock(file.parent)
            yield
    except AtWork:
        known = owner.read_text() if owner.is_file() else "unknown"
        raise WorkspaceError(
            f"{folder} is being rebuilt by process {known}: wait for it, or give --revision HEAD to work in a fresh "
            "workspace beside it"
        ) from None


def remove_half_written_rwlock(folder: Path) -> None:
    """DVC's list of who is at work: a full disk leaves it without content, and no command of DVC works here any more.

    Under DVC's guard of that file: a plain `dvc repro` beside this may be writing it.
    """
    from dvc.lock import make_lock

    file = folder / "rwlock"
    if not _broken(file):
        return
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
        if _broken(file):
            file.unlink()


def _broken(file: Path) -> bool:
    try:
        read_json(file)
    except FileNotFoundError:
        return False
    except ValueError:  # no JSON, or no text
        return True
    return False


@contextmanager
def fresh(
    source: Path, revision: str | None, overrides: Mapping[str, Any], name: str, preset: str | None = None
) -> Iterator[Path]:
    """A worktree of a commit with preset and overrides applied; removed when the block ends well.

    Without a revision: of HEAD, with the params.yaml that lies in `source`, committed or not.
    After a failure it stays to be looked at, until the next one of the same name.
    """
    commit = resolve(source, revision or "HEAD")
    top = Path(git(source, "rev-parse", "--show-toplevel").strip())
    if top.resolve() != source.resolve():
        raise WorkspaceError(f"a workspace needs the project at the top of its git repository, and that is {top}")
    place = source / ".work" / "workspaces"
    place.mkdir(parents=True, exist_ok=True)
    sweep_up(source, place, slug(name))
    folder = place / f"{slug(name)}-{uuid.uuid4().hex[:8]}"
    with locked(_lock_of(folder)):  # before the folder is there: who sweeps up takes an unlocked one for left behind
        git(source, "worktree", "add", "--detach", "--force", str(folder), commit)
        try:
            share_cache(source, folder)
            if revision is None and (source / PARAMS_FILE).is_file():
                shutil.copy(source / PARAMS_FILE, folder / PARAMS_FILE)
            use_preset(folder, preset)
            override(folder, overrides)
            link_raw_files(source, folder)
        except BaseException:
            remove(source, folder)
            raise
        yield folder
        remove(source, folder)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def sweep_up(source: Path, place: Path, prefix: str) -> None:
    """Remove what failed or killed runs of this name have left behind."""
    for folder in place.glob(f"{glob.escape(prefix)}-????????"):
        with suppress(AtWork), locked(_lock_of(folder)):
            remove(source, folder)


def slug(text: str) -> str:
    """Of a text that is cut, a hash stands for the rest: two names are never one folder."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-") or "rebuild"
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def remove(source: Path, folder: Path) -> None:
    subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=source, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)
    _lock_of(folder).unlink(missing_ok=True)
    git(source, "worktree", "prune")


def share_cache(source: Path, folder: Path) -> None:
    """The same cache, and the same private settings (remotes, passwords); bookkeeping of its own."""
    private = source / ".dvc" / "config.local"
    if private.is_file():
        shutil.copy(private, folder / ".dvc" / "config.local")
    with graph.opened(source) as repo:
        cache = repo.cache.local_cache_dir
    with graph.opened(folder) as repo, repo.config.edit("local") as settings:
        settings["cache"]["dir"] = cache
        settings["core"]["site_cache_dir"] = str(folder / ".dvc" / "tmp" / "site")


def use_storage(folder: Path) -> None:
    """Where a clone finds what a team shares, from the environment: machines differ in addresses, not in the pipeline.

    AUTOLORA_CACHE: DVC's cache on shared storage. AUTOLORA_REMOTE: a DVC remote (s3://..., ssh://..., a folder), with
    AUTOLORA_REMOTE_ENDPOINT for an S3 that is not Amazon's. All go into .dvc/config.local, which git does not see.
    There they stay when the variables go: nobody can tell them from what was set by hand.
    """
    cache, remote, endpoint = (os.environ.get(f"AUTOLORA_{name}") for name in ("CACHE", "REMOTE", "REMOTE_ENDPOINT"))
    if not cache and not remote:
        return
    wanted: dict[str, dict[str, Any]] = {}
    if cache:
        wanted["cache"] = {"dir": cache}
    if remote:
        _require_package(remote)
        wanted["remote"] = {
            "shared": {"url": remote, "endpointurl": endpoint or None}
        }  # None: none of an earlier run's
        wanted["core"] = {"remote": "shared"}
    with graph.opened(folder) as repo:
        present = repo.config.read("local")
        if _within(wanted, present):
            return  # runs beside this one read the file
        with repo.config.edit("local") as settings:
            for part, values in wanted.items():
                for key, value in values.items():
                    if isinstance(value, dict):  # a remote may have a user and a key file beside
                        value = settings[part].get(key, {}) | value
                        value = {name: one for name, one in value.items() if one is not None}
                    settings[part][key] = value


def _require_package(remote: str) -> None:
    """DVC would say so at the first stage's end, after hours of work."""
    from dvc.fs import registry

    scheme = urlsplit(remote).scheme
    try:
        registry[scheme]
    except ImportError:
        package = f"dvc-{scheme}".replace("webdavs", "webdav")
        how = "uv sync --group workers" if scheme == "s3" else f"uv pip install {package}"
        raise WorkspaceError(f"AUTOLORA_REMOTE is on {scheme}, and {package} is not installed: `{how}`") from None


def _within(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    """Does all that is wanted stand there already?"""
    return all(
        _within(value, present.get(key) or {}) if isinstance(value, Mapping) else present.get(key) == value
        for key, value in wanted.items()
    )


def remote(folder: Path) -> bool:
    """Is there a default DVC remote, through which machines share what they have built?"""
    with graph.opened(folder) as repo:
        return bool(repo.config["core"].get("remote"))
