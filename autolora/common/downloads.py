"""Weights from a path, a URL or the Hugging Face hub to a local file, whole and of known content.

fetch("https://host/robust.pt", sha256="…")      # goes on where it broke off; kept in the user's cache, or in `folder`
fetch("hf:timm/resnet18.a1_in1k@main/model.safetensors")
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from tqdm import tqdm

from autolora.common.command_line import nearest
from autolora.common.errors import BadArgument, first_line
from autolora.common.files import file_sha256, locked

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".pkl")
HUB = re.compile(r"^(?:hf:|hf-hub:|hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?$")
PREFERRED = ("model.safetensors", "pytorch_model.bin")
ATTEMPTS, PAUSE = 5, 0.2  # seconds before the second attempt, four times as long before each further one
LARGEST = 50 << 30  # bytes that a file of weights may have
SCHEMES = ("http://", "https://")


def fetch(weights: str, sha256: str | None = None, folder: str | Path | None = None) -> Path:
    """The local file of weights; with `sha256` given, of exactly that content."""
    if weights.startswith(SCHEMES):
        return fetch_url(weights, sha256, folder)
    if is_hub(weights):
        path = fetch_hub(weights)
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise BadArgument("weights", weights, f"there is no such file{_meant(path)}")
    _check(path, sha256, weights)
    return path


def _meant(path: Path) -> str:
    """The file beside it whose name is nearly the same."""
    with suppress(OSError):  # no such folder, or not ours to look into
        if near := nearest(path.name, [file.name for file in path.parent.iterdir() if file.is_file()]):
            return f"; did you mean {path.with_name(near)}?"
    return ""


def _check(path: Path, sha256: str | None, weights: str) -> None:
    if sha256 is not None and (actual := file_sha256(path)) != sha256.lower():
        raise BadArgument("weights", shown(weights), f"it is another file: its sha256 is {actual}, expected {sha256}")


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def is_hub(weights: str) -> bool:
    """Said to be, or owner/name without a file of that name and without a file's suffix."""
    if weights.startswith(("hf:", "hf-hub:", "hf://")):
        return True
    return (
        bool(HUB.match(weights))
        and weights.count("/") == 1
        and not (Path(weights).exists() or weights.startswith(("./", "../")) or weights.lower().endswith(SUFFIXES))
    )


def fetch_hub(weights: str) -> Path:
    """A file of a hub repository (the cache and HF_ENDPOINT, HF_HOME, HF_TOKEN are huggingface_hub's own)."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    match = HUB.match(weights)
    if match is None:
        raise BadArgument("weights", weights, "expected hf:owner/name[@revision][/file]")
    repo, revision = match["repo"], match["revision"]
    try:
        path = _hub_file(repo, match["file"], revision)
        with suppress(EntryNotFoundError, LocalEntryNotFoundError):
            _hub_file(repo, "config.json", revision)  # beside it: timm's mean and std
        return path
    except LocalEntryNotFoundError:
        raise BadArgument("weights", weights, "the hub cannot be reached, and its cache has no such file") from None
    except ValueError:
        raise
    except Exception as error:  # the client's transport, and so the types of its errors, change between versions
        reason = f"the hub does not give it: {type(error).__name__}, {first_line(error)}"
        raise BadArgument("weights", weights, reason) from None


def _hub_file(repo: str, file: str | None, revision: str | None) -> Path:
    """By name, else what timm and transformers call it (so that the cache serves offline), else the only one."""
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if file is not None:
        return Path(hf_hub_download(repo, file, revision=revision))
    for name in PREFERRED:
        try:
            return Path(hf_hub_download(repo, name, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    named = [name for name in list_repo_files(repo, revision=revision) if name.endswith(SUFFIXES)]
    if len(named) != 1:
        found = ", ".join(named) or "no file of weights"
        raise BadArgument("weights", repo, f"it has {found}: name one, hf:{repo}/FILE")
    return _hub_file(repo, named[0], revision)


# --- a URL ------------------------------------------------------------------------------------------------------------


def fetch_url(
    url: str,
    sha256: str | None = None,
    folder: str | Path | None = None,
    *,
    attempts: int = ATTEMPTS,
    pause: float = PAUSE,
    largest: int = LARGEST,
) -> Path:
    """Downloaded once; a transfer that broke off goes on where it stopped, also in the next process."""
    if urlsplit(url).username is not None:
        raise BadArgument(
            "weights", shown(url), "a user's name or password in an address ends up in records: leave it out"
        )
    folder = Path(folder or cache())
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(unquote(urlsplit(url).path)).name or "weights"
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    with locked(target.with_name(target.name + ".lock"), wait=True):  # the processes of a training all want one file
        if not (target.is_file() and sha256 in (None, file_sha256(target))):
            part = target.with_name(target.name + ".part")
            _download(Transfer(url, part, largest), attempts, pause)
            _check_download(part, sha256, url)
            os.replace(part, target)
    return target


def cache() -> Path:
    """Where a user's programs keep what they can fetch again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autolora" / "downloads"


def shown(url: str) -> str:
    """An address as it may be printed and kept: user, password and what follows a question mark are left out."""
    if not url.startswith(SCHEMES):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Transfer(NamedTuple):
    url: str
    part: Path  # what has arrived
    largest: int  # bytes that may arrive


class _SameKind(urllib.request.HTTPRedirectHandler):
    """A server may send us on, but not from https to http, and to nothing else."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https://",) if req.full_url.startswith("https://") else SCHEMES
        if not newurl.startswith(allowed):
            raise BadArgument(
                "weights", shown(req.full_url), f"the server sends us on to {shown(newurl)[:80]}: refused"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(transfer: Transfer, attempts: int, pause: float) -> None:
    for attempt in range(attempts):
        try:
            return _transfer(transfer)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the rest that we asked for is not there: another file, begin again
                transfer.part.unlink(missing_ok=True)
            elif error.code < 500:
                raise BadArgument(
                    "weights", shown(transfer.url), f"the server answers {error.code} {error.reason}"
                ) from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error)
        if attempt + 1 < attempts:
            time.sleep(min(pause * 4**attempt, 10))
    raise BadArgument(
        "weights",
        shown(transfer.url),
        f"could not be fetched ({reason}); what has arrived is kept, and the next run goes on from there",
    )


def _transfer(transfer: Transfer) -> None:
    """Append what is missing; If-Range makes the server begin again when the file is another one by now."""
    part = transfer.part
    tag = part.with_name(part.name + ".etag")
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": tag.read_text()} if have else {}
    opener = urllib.request.build_opener(_SameKind)
    with opener.open(urllib.request.Request(transfer.url, headers=headers), timeout=30) as answer:
        if answer.status != 206:
            have = 0
            part.unlink(missing_ok=True)  # before its tag: a kill between the two must not glue two files together
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if mark and not mark.startswith("W/"):
            tag.write_text(mark)
        else:
            tag.unlink(missing_ok=True)  # no way to know that it is still the same file: never glue two together
        length = int(answer.headers.get("Content-Length") or 0)
        if have + length > transfer.largest:
            raise _too_large(transfer)
        _append(answer, transfer, have, have + length)
    tag.unlink(missing_ok=True)


def _too_large(transfer: Transfer) -> BadArgument:
    transfer.part.unlink(missing_ok=True)
    return BadArgument(
        "weights", shown(transfer.url), f"more than {transfer.largest:,} bytes: that is no file of weights"
    )


def _append(answer: Any, transfer: Transfer, have: int, total: int) -> None:
    part = transfer.part
    with open(part, "r+b" if have else "wb") as file, _bar(part, have, total) as bar:
        file.seek(have)
        while chunk := answer.read(1 << 20):
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > transfer.largest:  # a server need not say how much will come
                raise _too_large(transfer)
    if total and (got := part.stat().st_size) < total:
        raise OSError(f"the connection broke off after {got} of {total} bytes")


def _bar(part: Path, have: int, total: int) -> Any:
    return tqdm(
        desc=part.stem, initial=have, total=total or None, unit="B", unit_scale=True, mininterval=5, leave=False
    )


def _check_download(part: Path, sha256: str | None, url: str) -> None:
    try:
        _check(part, sha256, url)
    except ValueError:
        part.unlink()
        raise
