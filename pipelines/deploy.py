"""What the alias names is what is served: fetched, verified, written as a Triton version folder, tried on canaries.

    python -m pipelines.deploy NAME@champion --to FOLDER [--keep 3]
    python -m pipelines.deploy NAME@champion --to FOLDER --watch 30                    # follow the alias
    python -m pipelines.deploy NAME@champion --to FOLDER --server http://triton:8000   # ask the server the canaries too
    python -m pipelines.deploy NAME --to FOLDER --rollback

Canaries are stored images, clean and adversarial, with the answers recorded when the version was registered. A file
that answers otherwise is taken back: the version before is served again, and the new one is not tried a second time. A
server that does not answer says nothing about the file: it is taken back, too, and tried again at the next look.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora.common.command_line import Command
from autolora.common.files import file_sha256
from autolora.export.notes import notes_in
from pipelines.registry import triton_repository as repository
from pipelines.registry.decision_log import now, who
from pipelines.registry.versions import alias_version, get_version, verified_onnx, where
from stages.common.runner import StageError, only_one
from stages.evidence.canaries import compare, disagreement
from stages.register import CANARIES, quiet
from stages.tracking.client import answering, connect, mlflow_module

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

Canaries = dict[str, np.ndarray]
METADATA = ("weights_sha256", "threat")  # what the file says of itself must be what the registry says


TEMPORARY = re.compile(r"\btmp[a-z0-9_]{8}\b")  # a folder of tempfile: another name at each look


class Refused(StageError):
    """The version is not served, and the one before it is."""


class Silent(StageError):
    """The server that was asked does not answer: nothing is known of the version."""


@dataclass(frozen=True)
class How:
    """keep: version folders that stay; server: asked the canaries too; retry: also what was refused here before."""

    keep: int = 3
    server: str | None = None
    retry: bool = False
    gpu: bool = False


AS_USUAL = How()


def deploy(name: str, alias: str, to: Path, how: How = AS_USUAL) -> str:
    """One look at the alias; returns what was done."""
    client = connect().MlflowClient()
    number = alias_version(client, name, alias)
    if number is None:
        raise StageError(f"{where()} has no {name}@{alias}: promote a version first")
    model = to / name
    model.mkdir(parents=True, exist_ok=True)
    with only_one(model):
        record = repository.state(model)
        if str(number) in record["refused"] and not how.retry:
            why = record["refused"][str(number)]
            raise Refused(f"{name} version {number} was refused here before ({why}): --retry tries it again")
        version = get_version(client, name, number)
        if record["current"] == number and _is(model, version):
            return f"{name} version {number} is served already"
        with tempfile.TemporaryDirectory() as folder:
            return _publish(version, model, Path(folder), how)


def _is(model: Path, version: ModelVersion) -> bool:
    file = model / str(version.version) / repository.MODEL_FILE
    return file.is_file() and file_sha256(file) == version.tags.get("onnx_sha256")


def _publish(version: ModelVersion, model: Path, folder: Path, how: How) -> str:
    """Verify, try, write, try again where it lies, and take it back when it does not answer as recorded."""
    number, before = int(version.version), repository.state(model)["current"]
    path = verified_onnx(version, folder)
    check_metadata(version, path)
    canaries = fetch_canaries(version, folder)
    _try(model, number, before, lambda: disagreement(path, canaries))
    if how.server:  # or a dead server would have the served version changed, and changed back, at each look
        _try(model, number, before, partial(alive, how.server))
    written = repository.write_version(model, number, path)
    repository.serve(model, number, {"at": now(), "by": who(), "what": "deployed"}, gpu=how.gpu)
    _try(model, number, before, lambda: disagreement(written, canaries))
    if how.server:
        _try(model, number, before, partial(ask, how.server, model.name, number, canaries))
    repository.prune(model, how.keep, (number, before))
    return f"{model.name} version {number} is served from {written.parent} (before: {before or 'none'})"


def check_metadata(version: ModelVersion, path: Path) -> None:
    notes = notes_in(path)
    for key in METADATA:
        if notes.get(key) != version.tags.get(key):
            raise StageError(
                f"{version.name} version {version.version}: model.onnx says {key} = {notes.get(key)}, "
                f"the registry says {version.tags.get(key)}: refused"
            )


def fetch_canaries(version: ModelVersion, folder: Path) -> Canaries:
    """The recorded answers, which must be those that were registered."""
    with quiet():
        path = mlflow_module().artifacts.download_artifacts(
            run_id=version.run_id, artifact_path=CANARIES, dst_path=str(folder)
        )
    if file_sha256(path) != version.tags.get("canaries_sha256"):
        title = f"{version.name} version {version.version}"
        raise StageError(f"{title}: {CANARIES} was changed after it was registered: refused")
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _try(model: Path, number: int, before: int | None, canary: Callable[[], str | None]) -> None:
    """When the canaries are not answered as recorded: serve the version before again, and say so."""
    try:
        wrong = canary()
    except Silent as error:
        back = _take_back(model, number, before)
        raise StageError(f"{model.name} version {number} cannot be tried: {error}; {back}") from None
    except Exception as error:  # a file that does not load
        wrong = f"{type(error).__name__}: {error}"
    if wrong is None:
        return
    back = _take_back(model, number, before)
    repository.refuse(model, number, wrong)
    raise Refused(f"{model.name} version {number} does not answer its canaries as recorded: {wrong}; {back}")


def _take_back(model: Path, number: int, before: int | None) -> str:
    """Remove the version, after the one before is served again; says which that is."""
    if before is None or before == number:
        repository.remove(model, number)
        return "nothing was served before"
    if repository.state(model)["current"] == number:
        repository.serve(model, before, {"at": now(), "by": who(), "what": f"rolled back from {number}"})
    repository.remove(model, number)
    return f"version {before} is served"


def alive(server: str) -> None:
    """Is there anybody to ask? (KServe v2; which models it has does not matter yet.)"""
    _wait_ready(f"{server.rstrip('/')}/v2/health/live", 0)


def ask(server: str, name: str, number: int, canaries: Canaries, seconds: float = 60) -> str | None:
    """The canaries to a running server (KServe v2 over HTTP), once it has loaded the version."""
    base = f"{server.rstrip('/')}/v2/models/{name}/versions/{number}"
    _wait_ready(f"{base}/ready", seconds)
    try:
        return compare(_answers(base, canaries["x"]), canaries["logits"])
    except (OSError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code < 500:
            raise  # that is an answer
        raise Silent(f"{server} does not answer ({type(error).__name__}: {error})") from None


def _answers(base: str, x: np.ndarray) -> np.ndarray:
    with urllib.request.urlopen(base, timeout=10) as reply:
        (image,) = json.load(reply)["inputs"]
    body = {"inputs": [_tensor(image["name"], image["datatype"], x)]}
    request = urllib.request.Request(f"{base}/infer", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        output = json.load(reply)["outputs"][0]
    return np.asarray(output["data"], np.float32).reshape(output["shape"])


def _tensor(name: str, datatype: str, x: np.ndarray) -> dict[str, Any]:
    if datatype == "UINT8":
        x = np.rint(x * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return {"name": name, "shape": list(x.shape), "datatype": datatype, "data": x.ravel().tolist()}


def _wait_ready(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                raise Silent(f"{url} is not ready after {seconds:g} s ({error})") from None
        time.sleep(0.5)


def rollback(name: str, to: Path) -> str:
    """Serve the version that was served before the present one, which is not tried again (without --retry)."""
    model = to / name
    if not model.is_dir():
        raise StageError(f"{model}: nothing was deployed here")
    with only_one(model):
        record, there = repository.state(model), repository.versions(model)
        current = record["current"]
        reached = [e["before"] for e in record["events"] if e["version"] == current and e["what"] == "deployed"]
        if not reached or reached[-1] not in there:
            raise StageError(f"{model}: no version before {current} is kept here (kept: {there})")
        repository.serve(model, reached[-1], {"at": now(), "by": who(), "what": f"rolled back from {current}"})
        repository.refuse(model, current, f"rolled back by {who()}")
    return f"{name} version {reached[-1]} is served again, instead of {current}"


def watch(look: Callable[[], str], seconds: float, rounds: int | None = None) -> None:
    """Look again and again; what fails is told once, and does not end the watch."""
    told = ""
    while rounds is None or rounds > 0:
        try:
            said = look()
        except StageError as error:
            said = f"deploy: {error}"
        except Exception as error:  # a download that breaks off, a full disk: mended some day, and the watch goes on
            said = f"deploy: {type(error).__name__}: {error}"
        said = TEMPORARY.sub("tmp", said)
        if said != told:
            print(f"{now()[:19]}Z  {said}", flush=True)
            told = said
        rounds = None if rounds is None else rounds - 1
        time.sleep(seconds)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Command(
        __doc__,
        reads="the registry: the alias, the version's files and canaries",
        writes="the version's folder, config.pbtxt and deployed.json in FOLDER",
    )
    parser.add_argument("model", metavar="NAME[@ALIAS]")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the Triton model repository")
    parser.add_argument("--keep", type=int, default=3, metavar="K", help="version folders that stay (default 3)")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="follow the alias until interrupted")
    parser.add_argument("--server", metavar="URL", help="ask this running server the canaries, too")
    parser.add_argument("--retry", action="store_true", help="also a version that was refused here before")
    parser.add_argument("--gpu", action="store_true", help="KIND_GPU in config.pbtxt")
    parser.add_argument("--rollback", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.keep < 1:
        parser.error("--keep is at least 1: the version that is served stays")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    name, _, alias = chosen.model.partition("@")

    def look() -> str:
        how = How(chosen.keep, chosen.server, chosen.retry, chosen.gpu)
        with answering():
            return deploy(name, alias or "champion", chosen.to, how)

    try:
        if chosen.watch is not None:
            watch(look, chosen.watch)
        print(rollback(name, chosen.to) if chosen.rollback else look())
    except StageError as error:
        print(f"deploy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
