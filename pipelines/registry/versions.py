"""Reading the registry without trusting it: versions, aliases, and evidence that is what was registered.

with evidence_of(version) as evidence: ...     # downloaded, every sha256 verified
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from autolora.common.files import file_sha256, read_json
from stages.common.runner import StageError
from stages.common.scrub import scrubbed
from stages.evidence.files import ONNX, Evidence, content_key, same_weights
from stages.register import CANARIES, fetch_onnx, quiet, version_tags
from stages.tracking.client import SQLITE, connect, database_file, mlflow_module, shown_uri, tracking_uri
from stages.tracking.mirror import EVIDENCE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

NOT_THERE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def registry() -> MlflowClient:
    """Of the registry that is there: nobody looks one up, or moves an alias, in an empty one made for it."""
    uri = tracking_uri()
    if uri.startswith(SQLITE) and not database_file(uri).exists():
        raise StageError(
            f"there is no registry at {shown_uri()}: go where it was registered, or set MLFLOW_TRACKING_URI"
        )
    return connect().MlflowClient()


def get_version(client: MlflowClient, name: str, number: str | int) -> ModelVersion:
    from mlflow import MlflowException

    try:
        return _numbered(client.get_model_version(name, str(number)))
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        raise StageError(f"{where()} has no version {number} of {name}{_known(client, name)}") from None


def _numbered(version: ModelVersion) -> ModelVersion:
    """MLflow's client makes an empty version of whatever another server says."""
    if not str(version.version).isdecimal():
        raise StageError(f"{where()} does not answer as an MLflow server does")
    return version


def _known(client: MlflowClient, name: str) -> str:
    found = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    return f": there are {', '.join(map(str, found))}" if found else ", and no model of that name"


def unknown_model(name: str) -> StageError:
    return StageError(f"{where()} has no model named {name}")


def require_model(client: MlflowClient, name: str) -> None:
    """A name with a slip of the pen has no champion either."""
    from mlflow import MlflowException

    try:
        found = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        raise unknown_model(name) from None
    if found.name != name:
        raise StageError(f"{where()} does not answer as an MLflow server does")


def alias_version(client: MlflowClient, name: str, alias: str) -> int | None:
    """The number of the version that an alias names; None where it names none (MLflow says INVALID_PARAMETER_VALUE)."""
    from mlflow import MlflowException

    try:
        return int(_numbered(client.get_model_version_by_alias(name, alias)).version)
    except MlflowException as error:
        if error.error_code not in NOT_THERE:
            raise
        return None


def where() -> str:
    return shown_uri()


@contextmanager
def evidence_of(version: ModelVersion) -> Iterator[Evidence]:
    """The files of a version in a temporary folder, laid out as in the repository, and verified."""
    with tempfile.TemporaryDirectory() as folder:
        title = f"{version.name} version {version.version}"
        try:
            with quiet():
                mlflow = mlflow_module()
                mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path=EVIDENCE, dst_path=folder)
                tree = Path(folder) / EVIDENCE
                (tree / ONNX).parent.mkdir(parents=True, exist_ok=True)
                fetch_onnx(mlflow, version, (tree / ONNX).parent)
                canaries = mlflow.artifacts.download_artifacts(
                    run_id=version.run_id, artifact_path=CANARIES, dst_path=folder
                )
        except Exception as error:
            raise StageError(f"{title}: its files cannot be fetched from {where()} ({scrubbed(str(error))})") from None
        evidence = Evidence(tree)
        verify(title, evidence, version.tags)
        if file_sha256(canaries) != version.tags.get("canaries_sha256"):  # or nobody could serve what is promoted
            raise StageError(f"{title}: {CANARIES} was changed after it was registered: refused")
        yield evidence


def verify(title: str, evidence: Evidence, tags: dict[str, str]) -> None:
    """What is there is what was registered, file by file; otherwise it is named and refused."""
    if "content_key" not in tags:
        raise StageError(f"{title} was not registered by this pipeline (it has no content_key): register it first")
    try:
        registered = dict(read_json(evidence.path("manifest.json")))
    except (OSError, ValueError, TypeError):
        raise StageError(f"{title}: its manifest.json cannot be read. Its evidence proves nothing.") from None
    if content_key(registered) != tags["content_key"]:
        raise StageError(f"{title}: its list of files or its content_key was changed. Its evidence proves nothing.")
    if changed := [name for name, digest in registered.items() if _sha256(evidence.path(name)) != digest]:
        names = ", ".join(changed)
        raise StageError(f"{title}: {names} changed afterwards (sha256 differs). Its evidence proves nothing.")
    for tag, value in version_tags(evidence).items():
        if not _same(tags.get(tag, ""), value):
            raise StageError(f"{title}: its tag {tag} says {tags.get(tag)}, its evidence says {value}: refused")
    same_weights(evidence)


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def _same(tag: str, value: str) -> bool:
    """Equal, or the same number in another notation."""
    try:
        return tag == value or abs(float(tag) - float(value)) < 1e-4
    except ValueError:
        return False


def verified_onnx(version: ModelVersion, folder: Path) -> Path:
    """The version's ONNX file in `folder`, with the sha256 that was registered."""
    title = f"{version.name} version {version.version}"
    try:
        with quiet():
            path = fetch_onnx(mlflow_module(), version, folder)
    except Exception as error:
        raise StageError(f"{title}: model.onnx cannot be fetched from {where()} ({scrubbed(str(error))})") from None
    found, expected = file_sha256(path), version.tags.get("onnx_sha256", "none registered")
    if found != expected:
        raise StageError(
            f"{title}: model.onnx was changed after it was registered "
            f"(sha256 {found[:12]}, expected {expected[:12]}): refused"
        )
    return path
