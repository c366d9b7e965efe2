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
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from autolora.common.files import AtWork, locked
from pipelines.execution import commands
from pipelines.execution.parameters import inside
from pipelines.workspace import dvc_graph as graph
from pipelines.workspace.revisions import PARAMS, RUNNER, module_in, schema_in
from stages.common.yaml_text import NotYaml, parsed, short

OWN = ("dvc.lock", ".gitignore")  # DVC writes both
LONGEST = 60  # letters of a folder's name
PARAMS_FILE = "params.yaml"  # what a run is given, not what it is made from: it is recorded with the run
NAMES_OF_FILES = [("backbone", "weights"), ("finetune", "teacher"), ("finetune", "natural_teacher")]
NAMES_OF_FILES += [("data", "reference_manifest")]
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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two rebuilds never work in one folder; the lock dies with its holder."""
    file = folder / ".dvc" / "tmp" / "rebuild.lock"
    owner = file.with_suffix(".pid")
    try:
        with locked(file):
            owner.write_text(str(os.getpid()))
            yield
    except AtWork:
        known = owner.read_text() if owner.is_file() else "unknown"
        raise WorkspaceError(
            f"{folder} is being rebuilt by process {known}: wait for it, or give --revision HEAD to work in a fresh "
            "workspace beside it"
        ) from None


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
        if not _belongs_to_dvc(file, outs) and file != folder / PARAMS_FILE and (status != "??" or _code(file, read)):
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


def _belongs_to_dvc(file: Path, outs: Sequence[Path]) -> bool:
    return file.name in OWN or any(file == out or out in file.parents for out in outs)


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
    """
    cache, remote, endpoint = (os.environ.get(f"AUTOLORA_{name}") for name in ("CACHE", "REMOTE", "REMOTE_ENDPOINT"))
    if not cache and not remote:
        return
    wanted: dict[str, dict[str, Any]] = {}
    if cache:
        wanted["cache"] = {"dir": cache}
    if remote:
        wanted["remote"] = {"shared": {"url": remote} | ({"endpointurl": endpoint} if endpoint else {})}
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
                    settings[part][key] = value


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


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """["finetune.method=vanilla", "seed=1"] -> {"finetune.method": "vanilla", "seed": 1}"""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise WorkspaceError(f"override {short(repr(text))}: expected KEY=VALUE, as in finetune.method=vanilla")
        if key.strip() in found:
            raise WorkspaceError(f"override {short(key)} is given twice")
        try:
            found[key.strip()] = parsed(value)
        except NotYaml as error:
            raise WorkspaceError(f"override {short(key)}: its value {error}") from None
    return found


def use_preset(folder: Path, preset: str | None) -> None:
    """A whole params.yaml of the revision instead of its own."""
    if preset is None:
        return
    if not inside(folder, preset, "preset").is_file():
        known = sorted(str(file.relative_to(folder)) for file in (folder / "presets").glob("*.yaml"))
        raise WorkspaceError(f"there is no preset {preset} in this revision: there are {', '.join(known) or 'none'}")
    shutil.copy(folder / preset, folder / "params.yaml")


def override(folder: Path, overrides: Mapping[str, Any]) -> None:
    """Write the overrides into params.yaml; the revision's own schema, where it has one, is the judge."""
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text()) if file.is_file() else {}
    schema = schema_in(folder) is not None
    for key, value in overrides.items():
        put(params, key, value, allow_new=schema)
    if overrides:
        file.write_text(yaml.safe_dump(params, sort_keys=False))
    if schema:
        judge(folder, folder, ["params.yaml"])


def put(params: dict[str, Any], key: str, value: Any, *, allow_new: bool) -> None:
    *parents, last = key.split(".")
    section: Any = params
    for part in parents:
        if not isinstance(section, dict) or not isinstance(section.get(part), dict):
            raise WorkspaceError(f"override {key}: params.yaml has no section {part!r}; it has {', '.join(params)}")
        section = section[part]
    if last not in section and not allow_new:
        raise WorkspaceError(f"override {key}: params.yaml has no such key; there are {', '.join(section)}")
    if not parents and isinstance(section.get(last), dict) and isinstance(value, dict):
        of_it = ", ".join(f"{key}.{one}" for one in value) or f"{key}.KEY"
        raise WorkspaceError(f"override {key}: it would set all of this section anew; give {of_it}")
    section[last] = value


def judge(source: Path, folder: Path, files: Sequence[str]) -> None:
    """What the schema of `source` says about these files in `folder`: in a process, it may be another revision's."""
    code = (
        f"import sys\nimport {module_in(source, PARAMS)} as params, {module_in(source, RUNNER)} as runner\n"
        "def override():\n    for file in sys.argv[1:]: params.check(file)\nrunner.main(override)"
    )
    env = commands.environment(PYTHONPATH=str(source))
    done = subprocess.run([sys.executable, "-c", code, *files], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise WorkspaceError(done.stderr.strip())


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
    return [dep.relative_to(folder) for dep in sorted(deps) if folder in dep.parents and not _belongs_to_dvc(dep, outs)]


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
