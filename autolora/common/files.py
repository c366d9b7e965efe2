"""Files that are either whole or absent, also after a power failure; locks; the hashes by which files are known."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block ends well, remove it when not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)  # of a process killed before this one got its number
    temporary.touch()
    mode = temporary.stat().st_mode  # what the umask says; safetensors leaves files that only their owner may read
    try:
        yield temporary
        temporary.chmod(mode)
        flushed(temporary)
        os.replace(temporary, path)
        flushed(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """The same for a folder; the one that was there stays until the new one is whole."""
    path = Path(path)
    sweep_up(path)
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for inside in (*part.rglob("*"), part):
            if not inside.is_symlink():
                flushed(inside)
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
        flushed(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sweep_up(path: Path) -> None:
    """What a killed replacing_folder has left beside the folder: half of a new one is removed; where the
    kill came before the new one was renamed, the old one is put back.
    """
    for left in sorted(path.parent.glob(f".{glob.escape(path.name)}.*.*")):
        _, pid, end = left.name.rsplit(".", 2)
        if end not in ("part", "old") or not pid.isdigit() or _alive(int(pid)):
            continue
        if end == "old" and not path.exists():
            os.replace(left, path)
        shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    """On this machine. Windows has no signal that only asks."""
    if os.name == "nt" or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def flushed(path: Path) -> None:
    """On the disk and not in its cache: a rename that outlives a power failure must not name a file that does not."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # a folder cannot be opened there
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # file systems that know no fsync
            raise
    finally:
        os.close(handle)


class AtWork(RuntimeError):
    """Somebody else holds the lock."""


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """`path` is the lock itself; it dies with its holder, also where that is killed. Held: wait, or AtWork."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise AtWork(f"another process is at work in {path.parent}: wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A write that fails (a full disk) does not name its file: say which it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(error.filename or path)) from error


def write_bytes(path: str | Path, content: bytes) -> None:
    with naming(path), replacing(path) as part:
        part.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    """Sorted keys and a final newline: the same value is always the same bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(state: Mapping[str, Any]) -> str:
    """One hash of a state dict, over sorted (name, dtype, shape, bytes): what is evaluated is what is shipped."""
    import torch  # only here: the rest of this module serves callers that never touch a tensor

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def stored_apart(state: Mapping[str, Any]) -> dict[str, Any]:
    """Weights that two names share are stored under both: safetensors has no other way to say it."""
    seen: set[int] = set()
    found = {}
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found
