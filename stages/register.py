"""The model and its evidence into the MLflow registry; the robustness card; a receipt.    python -m stages.register

The same content never becomes a second version: the key is a hash over the ONNX file and all that was measured on it.
The receipt is no proof but a pointer: a clone that meets another server registers there again.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora.attacks.verdicts import Check
from autolora.common.files import file_sha256, locked, read_json, write_json, write_text
from stages.card.page import card, plots
from stages.card.sections import short_name
from stages.card.strips import strips
from stages.card.svg import percent
from stages.common.command_line import takes_no_arguments
from stages.common.params import Gates
from stages.common.runner import StageError, main, timed, work_dir
from stages.common.views import RegisterParams, load
from stages.evidence.canaries import canaries
from stages.evidence.checks import in_words, sixteen
from stages.evidence.files import (
    EXAMPLES,
    EXPORT,
    FILES,
    FINETUNED,
    FLAGS,
    ONNX,
    ROBUSTNESS,
    TUNED,
    Evidence,
    same_weights,
)
from stages.evidence.provenance import altered, provenance_of
from stages.tracking.client import answering, connect, shown_uri
from stages.tracking.live_run import LIVE_STAGE
from stages.tracking.mirror import log_metrics, metrics, mirror
from stages.tracking.serving import log_checked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models.model import ModelInfo

RECEIPT, CARD = "models/registered.json", "reports/card.html"
CANARIES = "canaries.npz"
GATES = "gates"  # the tag


def register() -> None:
    params = load(RegisterParams).register
    with timed("register") as record:
        evidence = Evidence(".")
        same_weights(evidence)
        refuse_altered(evidence)
        source = provenance_of(evidence.folder)
        charts = plots(evidence)
        # Before the server is asked, so that there is a card to read where the server is away.
        write_text(CARD, card(evidence, params.name, strips(evidence), source, params.gates.model_dump(), charts))
        with answering():
            receipt = find_or_create(params.name, evidence, source, charts)
            keep_gates(receipt, params.gates)
        write_json(RECEIPT, receipt)
        record["version"] = receipt["version"]
    print(ending(receipt, evidence))


def refuse_altered(evidence: Evidence) -> None:
    """Only what the stages wrote is registered. DVC looks only when it is asked, and a stage may be run by hand."""
    names = [*FILES, EXPORT, EXAMPLES]
    if evidence.path(f"{TUNED}/robust.safetensors").is_file():  # a worker may have the record alone
        names.append(TUNED)
    found = altered(evidence.folder, names)
    if found:
        raise StageError(
            f"{', '.join(found)}: not what the stage wrote, dvc.lock has another hash. `dvc repro` makes it again"
        )


def ending(receipt: dict[str, Any], evidence: Evidence) -> str:
    """What there is now, where to look at it, and what one does next."""
    r, name, version = evidence.robustness, receipt["name"], receipt["version"]
    return "\n".join(
        [
            f"register: {name} version {version} at {receipt['tracking_uri']}",
            f"  {in_sentence(r)}",
            f"  {in_words(sixteen(r['checks']))}",
            f"  card     {CARD}",
            f"  promote  uv run python -m pipelines.promote {shlex.quote(name)} {version} --to champion",
        ]
    )


def in_sentence(r: dict[str, Any]) -> str:
    """88 % stand ..., 100 % are right unattacked."""
    clean, robust = percent(r["clean_accuracy"]), percent(r["robust_accuracy"])
    attack = "AutoAttack" if r["version"] == "standard" else f"the {r['version']} attack"
    threat, n = r["threat"]["text"], f"{r['data']['n']:,}"
    return f"{robust} of {n} images withstand {attack} at {threat}; {clean} are right when nobody attacks"


def run_title(evidence: Evidence) -> str:
    """What a list of runs shows: autolora linf 16/255: 88 / 100 (robust / clean)."""
    r = evidence.robustness
    method = evidence.optional(FINETUNED).get("method", "model")
    figures = " / ".join(f"{100 * r[key]:.4g}" for key in ("robust_accuracy", "clean_accuracy"))
    return f"{method} {r['threat']['text'].replace(':', ' ')}: {figures}"


def find_or_create(name: str, evidence: Evidence, source: dict[str, str], charts: dict[str, str]) -> dict[str, Any]:
    """The receipt of the one version that holds this content, created where the server does not have it."""
    mlflow = connect()
    client = mlflow.MlflowClient()
    with one_at_a_time(name):
        mine = None
        if there := find(client, name, evidence.key):
            client.log_artifact(there[0].run_id, CARD)  # with the gates as they are now
        else:
            mine = create(mlflow, name, evidence, source, charts)
        found = settle(client, name, evidence.key, mine)
    verify_file(mlflow, found, evidence.manifest[ONNX])
    return {
        "name": name,
        "version": int(found.version),
        "model_uri": f"models:/{name}/{found.version}",
        "run_id": found.run_id,
        "experiment_id": client.get_run(found.run_id).info.experiment_id,
        "tracking_uri": shown_uri(),
        "content_key": evidence.key,
        "onnx_sha256": evidence.manifest[ONNX],
    }


def keep_gates(receipt: dict[str, Any], gates: Gates) -> None:
    """They travel with the version: promotion asks no params.yaml that happens to lie where it is started."""
    text = json.dumps(gates.model_dump(), sort_keys=True)
    connect().MlflowClient().set_model_version_tag(receipt["name"], str(receipt["version"]), GATES, text)


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Registrations on this machine wait for each other; those of other machines are settled on the server."""
    with locked(work_dir("register", name=name) / "lock", wait=True):
        yield


def find(client: MlflowClient, name: str, key: str) -> list[ModelVersion]:
    """The versions with this content, oldest first."""
    versions = client.search_model_versions(f"name = '{name}' and tags.content_key = '{key}'")
    return sorted(versions, key=lambda v: int(v.version))


def settle(client: MlflowClient, name: str, key: str, mine: ModelVersion | None) -> ModelVersion:
    """Where two machines registered at the same moment the older version stays; each removes only what it made itself.

    A version appears whole and at once, with its key; numbers rise; so both see the older one, and agree.
    """
    if not (found := find(client, name, key)):
        raise StageError(f"{shown_uri()}: the version of {name} was deleted while it was registered: run it again")
    oldest = found[0]
    if mine is not None and mine.run_id and mine.version != oldest.version:
        client.delete_model_version(name, mine.version)
        client.set_tag(mine.run_id, "duplicate_of_version", oldest.version)
        if client.get_run(mine.run_id).data.tags.get("stage") != LIVE_STAGE:  # what was seen live stays
            client.delete_run(mine.run_id)
    return oldest


def create(
    mlflow: ModuleType, name: str, evidence: Evidence, source: dict[str, str], charts: dict[str, str]
) -> ModelVersion:
    """Run, model, metrics, and only then the version: what is in the registry is complete."""
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CANARIES
        known = canaries(evidence)
        np.savez(path, allow_pickle=False, **known)
        tags = version_tags(evidence) | source | {"canaries_sha256": file_sha256(path)}
        run_id = mirror(mlflow, evidence, run_title(evidence), charts, [path, evidence.path(CARD)])
    model = log_onnx(mlflow, run_id, evidence, known["x"][:1], tags)
    log_metrics(mlflow, run_id, metrics(evidence), model.model_id)
    _ensure_registered_model(mlflow, name)
    return client.create_model_version(
        name, f"models:/{model.model_id}", run_id, tags, description=description(evidence), model_id=model.model_id
    )


def log_onnx(
    mlflow: ModuleType, run_id: str, evidence: Evidence, example: np.ndarray, tags: dict[str, str]
) -> ModelInfo:
    """The file's bytes as they are, behind the check of its input contract."""
    with mlflow.start_run(run_id=run_id), quiet():
        return log_checked(
            evidence.path(ONNX),
            evidence.classes,
            {"threat": evidence.robustness["threat"]["text"]},
            example=example,
            name="classifier",
            model_type="image-classifier",
            tags=tags,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """MLflow writes progress to stderr."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


def _ensure_registered_model(mlflow: ModuleType, name: str) -> None:
    try:
        mlflow.MlflowClient().create_registered_model(name, description="Robust classifiers; `champion` is served.")
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def version_tags(evidence: Evidence) -> dict[str, str]:
    """What people filter by, and what promotion and deployment verify."""
    r = evidence.robustness
    return {
        "robust_accuracy": f"{r['robust_accuracy']:.4f}",
        "clean_accuracy": f"{r['clean_accuracy']:.4f}",
        "threat": r["threat"]["text"],
        "eps": f"{r['threat']['eps']:.6g}",
        "n": str(r["data"]["n"]),
        "attack_version": r["version"],
        "alpha": f"{r['alpha']:g}",
        "checks": in_words(sixteen(r["checks"])),
        "content_key": evidence.key,
        "onnx_sha256": evidence.manifest[ONNX],
        "robustness_sha256": evidence.manifest[ROBUSTNESS],
        "flags_sha256": evidence.manifest[FLAGS],
        "weights_sha256": r["weights_sha256"],
        "data_ids_sha256": r["data"]["ids_sha256"],
    }


def description(evidence: Evidence) -> str:
    """The model card in short, as Markdown; the whole one is card.html in the run's artifacts."""
    r = evidence.robustness
    low, high = (f"{100 * v:.1f}" for v in r["ci95"])
    twin, found = r.get("baseline"), sixteen(r["checks"])
    return "\n".join(
        [
            f"{in_sentence(r)}.",
            "",
            f"**Robust image classifier**, {len(evidence.classes)} classes: {', '.join(evidence.classes[:12])}"
            + (" …" if len(evidence.classes) > 12 else ""),
            "",
            f"- **Threat model:** {r['threat']['text']}, white box, on pixels in [0, 1]",
            f"- **Robust accuracy:** {100 * r['robust_accuracy']:.1f} % (95 % interval {low} to {high}; AutoAttack "
            f"{r['version']}, n = {r['data']['n']})",
            f"- **Clean accuracy:** {100 * r['clean_accuracy']:.1f} %",
            *([f"- **Natural twin under the same attack:** {100 * twin['robust_accuracy']:.1f} %"] if twin else []),
            *(f"- **Also:** {100 * row['accuracy']:.1f} % {short_name(row['what'])}" for row in r.get("also", [])),
            f"- **Dial:** alpha = {r['alpha']:g}, folded into the weights before the attack",
            f"- **Checks:** {in_words(found)}{_not_passed(found)}",
            "",
            f"**Use:** {_pixels(evidence)}, not normalised: the file normalises itself. "
            "**Not for:** other threats than the one above, or images unlike the test images. "
            "Whole card: `card.html` in the run's artifacts.",
        ]
    )


def _pixels(evidence: Evidence) -> str:
    if evidence.exported.get("input") == "uint8":
        return "uint8 pixels from 0 to 255, shape [n, h, w, 3]"
    return "float32 pixels in [0, 1], shape [n, 3, h, w]"


def _not_passed(checks: list[Check]) -> str:
    names = [f"{c.title} ({c.verdict})" for c in checks if c.verdict != "pass"]
    return f": {', '.join(names)}" if names else ""


def verify_file(mlflow: ModuleType, version: ModelVersion, expected: str) -> None:
    """The registry's ONNX file, byte for byte the one that was registered, or an error that says so."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = fetch_onnx(mlflow, version, Path(folder))
        found = file_sha256(path)
    if found != expected:
        raise StageError(
            f"{version.name} version {version.version} on {shown_uri()} holds another model.onnx "
            f"than was registered (sha256 {found[:12]}, expected {expected[:12]}): it was changed afterwards. "
            "Delete that version and run `dvc repro` again."
        )


def fetch_onnx(mlflow: ModuleType, version: ModelVersion, folder: Path) -> Path:
    """Download the one ONNX file of a version."""
    uri = f"models:/{version.name}/{version.version}/model.onnx"
    return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))


def read_receipt(path: str | Path = RECEIPT) -> dict[str, Any]:
    """It is kept in git, so it may hold the marks of a merge."""
    try:
        receipt = read_json(path)
        assert {"name", "version", "content_key", "onnx_sha256", "tracking_uri"} <= set(receipt)
        return receipt
    except (ValueError, TypeError, AssertionError):
        again = "`dvc repro --force --single-item register` writes it anew"
        raise StageError(f"{path} is no receipt any more: {again}") from None


def check_receipt(client: MlflowClient, path: str | Path = RECEIPT) -> ModelVersion:
    """The version that the receipt names, which the server must know, with the same content."""
    receipt, uri = read_receipt(path), shown_uri()
    named = [v for v in find(client, receipt["name"], receipt["content_key"]) if int(v.version) == receipt["version"]]
    if not named:
        raise StageError(
            f"{path} names {receipt['name']} version {receipt['version']} (registered at {receipt['tracking_uri']}), "
            f"which {uri} does not know: set MLFLOW_TRACKING_URI to the server that has it, or register here with "
            "`dvc repro --force --single-item register`"
        )
    return named[0]


if __name__ == "__main__":
    takes_no_arguments(__doc__)
    main(register)
