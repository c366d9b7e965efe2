"""Weights from a path, a URL or the Hugging Face hub to a local file, whole and of known content.

fetch("https://host/robust.pt", sha256="…")      # resumed where it broke off, kept in .work/downloads
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
from typing import Any
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from autolora.common.errors import first_line
from autolora.common.files import file_sha256, locked

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar", ".pkl")
HUB = re.compile(r"^(?:hf:|hf-hub:|hf://)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?$")
PREFERRED = ("model.safetensors", "pytorch_model.bin")
ATTEMPTS, PAUSE = 5, 0.2  # seconds before the second attempt, four times as long before each further one


def fetch(weights: str, sha256: str | None = None, folder: str | Path | None = None) -> Path:
    """The local file of weights; with `sha256` given, of exactly that content."""
    if weights.startswith(("http://", "https://")):
        return fetch_url(weights, sha256, folder)
    if _is_hub(weights):
        path = fetch_hub(weights)
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"backbone.weights: there is no file {weights}")
    _check(path, sha256, weights)
    return path


def resolve_weights(
    weights: str | None, sha256: str | None = None, pretrained: str | Path = "models/pretrained"
) -> Path | None:
    """The local file for backbone.weights, whose content DVC can know: it lies in `pretrained`, or sha256 is given."""
    if weights is None:
        return None
    path = fetch(weights, sha256)
    # the folder and not the file: DVC reads what a link leads to, and sees it change
    inside = path.parent.resolve().is_relative_to(Path(pretrained).resolve())
    if sha256 is None and not inside:
        raise ValueError(
            f"backbone.weights is {weights}, outside {pretrained}/, where DVC does not see it change: "
            f"put its content on record with backbone.sha256: {file_sha256(path)}"
        )
    return path


def _check(path: Path, sha256: str | None, weights: str) -> None:
    if sha256 is not None and (actual := file_sha256(path)) != sha256.lower():
        raise ValueError(f"backbone.weights {weights} is another file: its sha256 is {actual}, expected {sha256}")


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def _is_hub(weights: str) -> bool:
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
        raise ValueError(f"backbone.weights is {weights!r}: expected hf:owner/name[@revision][/file]")
    repo, revision = match["repo"], match["revision"]
    try:
        path = _hub_file(repo, match["file"], revision)
        with suppress(EntryNotFoundError, LocalEntryNotFoundError):
            _hub_file(repo, "config.json", revision)  # beside it: timm's mean and std
        return path
    except LocalEntryNotFoundError:
        raise ValueError(f"backbone.weights: the hub cannot be reached, and {repo} is not in its cache") from None
    except ValueError:
        raise
    except Exception as error:  # the client's transport, and so the types of its errors, change between versions
        named = " ".join(filter(None, (repo, match["file"])))
        raise ValueError(
            f"backbone.weights: the hub does not give {named}: {type(error).__name__}, {first_line(error)}"
        ) from None


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
        raise ValueError(f"backbone.weights: {repo} has {found}: name one, hf:{repo}/FILE")
    return _hub_file(repo, named[0], revision)


# --- a URL ------------------------------------------------------------------------------------------------------------


def fetch_url(url: str, sha256: str | None = None, folder: str | Path | None = None) -> Path:
    """Downloaded once; a transfer that broke off goes on where it stopped, also in the next process."""
    folder = Path(folder or Path(os.environ.get("AUTOLORA_WORK", ".work")) / "downloads")
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(unquote(urlsplit(url).path)).name or "weights"
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    with locked(target.with_name(target.name + ".lock"), wait=True):  # the processes of a training all want one file
        if not (target.is_file() and sha256 in (None, file_sha256(target))):
            part = target.with_name(target.name + ".part")
            _download(url, part)
            _check_download(part, sha256, url)
            os.replace(part, target)
    return target


def _download(url: str, part: Path) -> None:
    for attempt in range(ATTEMPTS):
        try:
            return _transfer(url, part)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the rest that we asked for is not there: another file, begin again
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise ValueError(f"backbone.weights: {url} answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error)
        if attempt + 1 < ATTEMPTS:
            time.sleep(min(PAUSE * 4**attempt, 10))
    raise ValueError(
        f"backbone.weights: {url} could not be fetched ({reason}); "
        "what has arrived is kept, and the next run goes on from there"
    )


def _transfer(url: str, part: Path) -> None:
    """Append what is missing; If-Range makes the server begin again when the file is another one by now."""
    tag = part.with_name(part.name + ".etag")
    have = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Range": f"bytes={have}-", "If-Range": tag.read_text()} if have else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        if answer.status != 206:
            have = 0
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if mark and not mark.startswith("W/"):
            tag.write_text(mark)
        else:
            tag.unlink(missing_ok=True)  # no way to know that it is still the same file: never glue two together
        total = have + int(answer.headers.get("Content-Length") or 0)
        _append(answer, part, have, total)
    tag.unlink(missing_ok=True)


def _append(answer: Any, part: Path, have: int, total: int) -> None:
    with open(part, "r+b" if have else "wb") as file, _bar(part, have, total) as bar:
        file.seek(have)
        while chunk := answer.read(1 << 20):
            file.write(chunk)
            bar.update(len(chunk))
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
