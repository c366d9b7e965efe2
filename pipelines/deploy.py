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
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autolora.common.command_line import Command, at_least_one
from autolora.common.files import file_sha256
from autolora.export.notes import notes_in
from pipelines.registry import triton_repository as repository
from pipelines.registry.decision_log import CONTENTS, entries, explaining, now, who
from pipelines.registry.signature import verify
from pipelines.registry.triton_server import Canaries, Silent, alive, ask
from pipelines.registry.versions import alias_version, get_version, registry, verified_onnx, where
from stages.common.runner import StageError, only_one
from stages.common.scrub import scrubbed
from stages.evidence.canaries import disagreement
from stages.register import CANARIES, quiet
from stages.tracking.client import answering, mlflow_module

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

METADATA = ("weights_sha256", "threat")  # what the file says of itself must be what the registry says
TEMPORARY = re.compile(r"\btmp[a-z0-9_]{8}\b")  # a folder of tempfile: another name at each look
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]*")  # as params.yaml takes it
TAKEN_BACK = "taken back"


class Refused(StageError):
    """The version is not served, and the one before it is."""


@dataclass(frozen=True)
class How:
    keep: int = 3  # version folders that stay
    server: str | None = None  # asked the canaries too
    retry: bool = False  # also what was refused here before
    gpu: bool = False
    unlogged: bool = False  # also what no decision in the log explains
    key: Path | None = None  # only what it has signed


AS_USUAL = How()


def deploy(name: str, alias: str, to: Path, how: How = AS_USUAL) -> str:
    """One look at the alias; returns what was done."""
    model = folder_of(name, to)
    model.mkdir(parents=True, exist_ok=True)
    with only_one(model):
        _repair(model)
        client = registry()
        number = alias_version(client, name, alias)
        if number is None:
            raise StageError(f"{where()} has no {name}@{alias}: promote a version first")
        record = repository.state(model)
        if str(number) in record["refused"] and not how.retry:
            why = record["refused"][str(number)]
            raise Refused(f"{name} version {number} was refused here before ({why}): --retry tries it again")
        version = get_version(client, name, number)
        if how.key:
            _verify_once(model, version, how.key)
        if record["current"] == number and _is(model, version):
            return f"{name} version {number} is served already"
        if not how.unlogged:
            require_decision(client, version, alias)
        with tempfile.TemporaryDirectory() as folder:
            return _publish(version, model, Path(folder), how)


def folder_of(name: str, to: Path) -> Path:
    """A name is one folder, and no way out of the repository."""
    if not NAME.fullmatch(name):
        raise StageError(f"{name!r} is no name of a model: letters, digits, '_', '.', '-' and blanks, a letter first")
    return to / name


def event(what: str) -> repository.Event:
    return {"at": now(), "by": who(), "what": what}


def _repair(model: Path) -> None:
    """At every look: what a death, or a hand, has left apart is brought together before anything else."""
    if said := repository.repair(model, event(TAKEN_BACK)):
        print(f"deploy: {model.name}: {said}", file=sys.stderr, flush=True)


def require_decision(client: MlflowClient, version: ModelVersion, alias: str) -> None:
    """The log says what was promoted, byte for byte: a registry writer cannot put another file in its place."""
    title, log = f"{version.name} version {version.version}", entries(client, version.name)
    entry = explaining(log, alias, int(version.version))
    if entry is None:
        raise StageError(
            f"no decision in the log brought {title} to {alias}: promote it, or serve it all the same with --unlogged"
        )
    if changed := [key for key in CONTENTS if entry.get(key) != version.tags.get(key)]:
        raise StageError(f"{title}: {', '.join(changed)} changed after it was promoted: refused")


def _is(model: Path, version: ModelVersion) -> bool:
    file = model / str(version.version) / repository.MODEL_FILE
    return file.is_file() and file_sha256(file) == version.tags.get("onnx_sha256")


def _publish(version: ModelVersion, model: Path, folder: Path, how: How) -> str:
    """Verify and try the file before anything is touched; then on trial where it lies, until it is found good."""
    number, before = int(version.version), repository.state(model)["current"]
    path = verified_onnx(version, folder)
    check_metadata(version, path)
    canaries = fetch_canaries(version, folder)
    if wrong := _wrong(lambda: disagreement(path, canaries)):
        repository.refuse(model, number, wrong)
        raise _refused(model, number, wrong, before)
    if how.server:  # or a dead server would have the served version changed, and changed back, at each look
        _asked(model, number, before, partial(alive, how.server))
    repository.begin(model, number, gpu=how.gpu)
    try:
        written = repository.write_version(model, number, path)
        repository.point(model, number, gpu=how.gpu)
        wrong = _wrong(lambda: disagreement(written, canaries))
        if how.server and not wrong:
            wrong = _wrong(partial(ask, how.server, model.name, number, canaries))
    except Silent as error:
        raise _untried(model, number, error, repository.abandon(model, event(TAKEN_BACK))) from None
    except BaseException:  # a full disk, a signal: at once, and if that fails, at the next look
        repository.abandon(model, event(TAKEN_BACK))
        raise
    if wrong:
        raise _refused(model, number, wrong, repository.abandon(model, event(TAKEN_BACK), wrong))
    repository.commit(model, event("deployed"))
    repository.prune(model, how.keep, (number, before))
    return f"{model.name} version {number} is served from {written.parent} (before: {before or 'none'})"


def _wrong(canary: Callable[[], str | None]) -> str | None:
    """How the answers differ from those recorded; None where they do not."""
    try:
        return canary()
    except Silent:
        raise
    except Exception as error:  # a file that does not load
        return f"{type(error).__name__}: {error}"


def _asked(model: Path, number: int, before: int | None, question: Callable[[], None]) -> None:
    try:
        question()
    except Silent as error:
        raise _untried(model, number, error, before) from None


def _untried(model: Path, number: int, error: Silent, served: int | None) -> StageError:
    return StageError(f"{model.name} version {number} cannot be tried: {error}; {repository.in_words(served)}")


def _refused(model: Path, number: int, wrong: str, served: int | None) -> Refused:
    served_now = repository.in_words(served)
    return Refused(f"{model.name} version {number} does not answer its canaries as recorded: {wrong}; {served_now}")


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


def rollback(name: str, to: Path, key: Path | None = None) -> str:
    """Serve the version that was served before the present one, which is not tried again (without --retry).

    It needs no registry, but where a key is asked for: the signature lies there.
    """
    model = folder_of(name, to)
    if not model.is_dir():
        raise StageError(f"{model}: nothing was deployed here")
    with only_one(model):
        _repair(model)
        record, there = repository.state(model), repository.versions(model)
        current = record["current"]
        reached = [e["before"] for e in record["events"] if e["version"] == current and e["what"] == "deployed"]
        if not reached or not repository.is_whole(model, reached[-1], record):
            raise StageError(f"{model}: no version before {current} is kept here (kept: {there})")
        if key:
            _verify_served(model, get_version(registry(), name, reached[-1]), key)
        repository.go_back(model, reached[-1], event(f"rolled back from {current}"), f"rolled back by {who()}")
    return f"{name} version {reached[-1]} is served again, instead of {current}"


def _verify_once(model: Path, version: ModelVersion, key: Path) -> None:
    """For each key: a look every few seconds does not fetch all files of the version that is served anew."""
    number, digest = int(version.version), file_sha256(key) if key.is_file() else ""
    if not (digest and repository.signed_by(model, number) == digest and _is(model, version)):
        verify(version, key)
        repository.note_signature(model, number, digest)


def _verify_served(model: Path, version: ModelVersion, key: Path) -> None:
    """The file that lies here is the one that is signed."""
    verify(version, key)
    if not _is(model, version):
        raise StageError(f"{model}: version {version.version} is not the file that was registered: refused")


def watch(look: Callable[[], str], seconds: float, rounds: int | None = None) -> None:
    """Look again and again; what fails is told once, and does not end the watch."""
    told = ""
    while rounds is None or rounds > 0:
        try:
            said = look()
        except StageError as error:
            said = scrubbed(f"deploy: {error}")
        except Exception as error:  # a download that breaks off, a full disk: mended some day, and the watch goes on
            said = scrubbed(f"deploy: {type(error).__name__}: {error}")
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
    parser.add_argument("model", metavar="NAME[@ALIAS]", help="of the registry, as robust-digits@champion")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the Triton model repository")
    parser.add_argument(
        "--keep", type=at_least_one, default=3, metavar="K", help="version folders that stay (default 3)"
    )
    parser.add_argument("--watch", type=seconds, metavar="SECONDS", help="follow the alias until interrupted")
    parser.add_argument("--server", metavar="URL", help="ask this running server the canaries, too")
    parser.add_argument("--retry", action="store_true", help="also a version that was refused here before")
    parser.add_argument("--gpu", action="store_true", help="KIND_GPU in config.pbtxt")
    parser.add_argument("--unlogged", action="store_true", help="also a version that no decision in the log explains")
    parser.add_argument("--verify", type=Path, metavar="KEY", help="only what was signed; the public key, in PEM")
    parser.add_argument("--rollback", action="store_true", help="serve the version before the present one")
    chosen = parser.parse_args(arguments)
    of_the_alias = [f"--{name}" for name in ("watch", "server", "retry", "gpu", "unlogged") if getattr(chosen, name)]
    if chosen.rollback and of_the_alias:
        parser.error(f"--rollback serves the version before, once: it takes no {', '.join(of_the_alias)}")
    return chosen


def seconds(text: str) -> float:
    """For `type=` of --watch."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, not {text}")
    return value


def _key(named: Path | None) -> Path | None:
    """AUTOLORA_VERIFY_KEY holds for every deployment of a machine: who starts one cannot leave it out."""
    configured = os.environ.get("AUTOLORA_VERIFY_KEY")
    return Path(configured) if configured else named


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    name, _, alias = chosen.model.partition("@")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is on trial is taken back on the way out

    def look() -> str:
        how = How(chosen.keep, chosen.server, chosen.retry, chosen.gpu, chosen.unlogged, _key(chosen.verify))
        with answering():
            return deploy(name, alias or "champion", chosen.to, how)

    def go_back() -> str:
        with answering():
            return rollback(name, chosen.to, _key(chosen.verify))

    try:
        if chosen.watch is not None:
            watch(look, chosen.watch)
        print(go_back() if chosen.rollback else look())
    except (StageError, OSError) as error:
        print(scrubbed(f"deploy: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
