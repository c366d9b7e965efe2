"""A signature over a version's network, evidence and canaries, with a key of one's own (OpenSSF's model-signing).

    openssl ecparam -name prime256v1 -genkey -noout -out promotion.pem       # kept by who promotes
    openssl ec -in promotion.pem -pubout -out promotion.pub                  # on every machine that deploys

Whoever can write to the registry, log of decisions included, still cannot make a version that such a machine serves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from autolora.common.files import write_json
from pipelines.registry.versions import evidence_of, where
from stages.common.runner import StageError
from stages.register import CANARIES, quiet
from stages.tracking.client import mlflow_module

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FILE = "model.sig"  # among the artifacts of the version's run
WHOSE = "signed-for.json"  # in the signed folder alone


def sign(client: MlflowClient, version: ModelVersion, key: Path) -> None:
    signing = model_signing().signing
    with signed_files(version) as tree, tempfile.TemporaryDirectory() as folder:
        try:
            signer = signing.Config().use_elliptic_key_signer(private_key=_there(key))
            signer.sign(tree, Path(folder) / FILE)
        except (ValueError, TypeError) as error:
            raise StageError(f"{key} signs nothing: expected an elliptic private key in PEM ({error})") from None
        with quiet():
            client.log_artifact(version.run_id, str(Path(folder) / FILE))


def verify(version: ModelVersion, key: Path) -> None:
    verifying, title = model_signing().verifying, f"{version.name} version {version.version}"
    with signed_files(version) as tree, tempfile.TemporaryDirectory() as folder:
        try:
            with quiet():
                signature = mlflow_module().artifacts.download_artifacts(
                    run_id=version.run_id, artifact_path=FILE, dst_path=folder
                )
        except Exception:  # whatever the store of these artifacts raises for what is not there
            raise StageError(f"{title} is not signed, and {key} is asked for: `promote --sign KEY` signs it") from None
        try:
            verifying.Config().use_elliptic_key_verifier(public_key=_there(key)).verify(tree, Path(signature))
        except Exception as error:
            reason = str(error).partition("\n")[0][:200]
            raise StageError(f"{title} is not signed by {key}: refused ({reason})") from None


@contextmanager
def signed_files(version: ModelVersion) -> Iterator[Path]:
    """The files of a version in one folder, verified against the registry. One of them says whose they are: what is
    signed for one model's name is not served under another.
    """
    with evidence_of(version) as evidence:
        try:
            with quiet():
                mlflow_module().artifacts.download_artifacts(
                    run_id=version.run_id, artifact_path=CANARIES, dst_path=str(evidence.folder)
                )
        except Exception as error:
            raise StageError(f"{version.name}: {CANARIES} cannot be fetched from {where()} ({error})") from None
        write_json(evidence.folder / WHOSE, {"name": version.name, "content_key": evidence.key})
        yield evidence.folder


def _there(key: Path) -> Path:
    if not key.is_file():
        raise StageError(f"there is no key {key}: the head of pipelines/registry/signature.py says how to make one")
    return key


def model_signing() -> ModuleType:
    try:
        import model_signing
    except ImportError:
        raise StageError("signatures need the package model-signing: `uv sync --group signing`") from None
    return model_signing
