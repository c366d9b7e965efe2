"""The run, written from the files: parameters, metrics, plots, evidence. What a live run already has is not repeated.

run_id = mirror(mlflow, evidence, "robust-digits 1a2b3c4d", plots, extra=[Path("reports/card.html")])
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stages.card.svg import standalone
from stages.common.runner import work_root
from stages.evidence.files import EXPORT, FILES, ONNX, TRAINING, Evidence
from stages.evidence.provenance import locked_params, provenance_of
from stages.tracking.client import experiment_id, log_epochs, log_params
from stages.tracking.live_run import find_live_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

EVIDENCE = "evidence"  # the artifact folder that holds the same tree as the repository


def mirror(mlflow: ModuleType, evidence: Evidence, title: str, plots: Mapping[str, str], extra: list[Path]) -> str:
    """The id of a finished run with all there is to know: the live run of this training, completed, or a new one."""
    client = mlflow.MlflowClient()
    rows = evidence.rows(TRAINING)
    run_id = find_live_run(rows, work_root() / "finetune") or ""
    if not _usable(client, run_id, evidence.key):
        run_id = client.create_run(experiment_id(mlflow), run_name=title).info.run_id
    client.update_run(run_id, status="RUNNING", name=title)
    log_params(mlflow, run_id, locked_params(evidence.folder))
    log_epochs(mlflow, run_id, missed(client, run_id, rows))
    log_metrics(mlflow, run_id, metrics(evidence))
    log_dataset(client, run_id, evidence)
    for key, value in ({"content_key": evidence.key} | provenance_of(evidence.folder)).items():
        client.set_tag(run_id, key, value)
    log_files(client, run_id, evidence, plots, extra)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def log_dataset(client: MlflowClient, run_id: str, evidence: Evidence) -> None:
    """The attacked images, known by the hash of their ids; MLflow lists them beside the run."""
    from mlflow import MlflowException
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = evidence.robustness["data"]
    source = json.dumps({"path": data["name"]})
    profile = json.dumps({"images": data["n"], "ids_sha256": data["ids_sha256"]})
    dataset = Dataset(str(data["name"]), data["ids_sha256"][:36], "local", source, profile=profile)
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", data["split"])])]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException:  # a server on PostgreSQL, to which another machine has just given the same images
        client.log_inputs(run_id, inputs)


def _usable(client: MlflowClient, run_id: str, key: str) -> bool:
    """A run holds the evidence of one version: the same training evaluated anew, or registered under a second name, is
    another run."""
    try:
        run = client.get_run(run_id) if run_id else None
    except Exception:  # a live run that this server does not know
        return False
    if run is None or run.info.lifecycle_stage != "active" or run.data.tags.get("content_key", key) != key:
        return False
    return not client.search_model_versions(f"run_id = '{run_id}'")


def missed(client: MlflowClient, run_id: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Epochs that the live run did not get to write, or that are of an attempt which diverged and was begun anew."""
    known = {
        metric.step: metric.value for metric in client.get_metric_history(run_id, "loss")
    }  # the last is the newest
    return [row for row in rows if not _written(row, known.get(int(row["epoch"])))]


def _written(row: dict[str, str], value: float | None) -> bool:
    return value is not None and math.isclose(float(row["loss"]), value, rel_tol=1e-3, abs_tol=1e-4)


def metrics(evidence: Evidence) -> dict[str, float]:
    """The figures that versions are compared by, as fractions."""
    robust, exported = evidence.robustness, evidence.exported
    found = {
        "clean_accuracy": robust["clean_accuracy"],
        "robust_accuracy": robust["robust_accuracy"],
        "robust_accuracy_low": robust["ci95"][0],
        "robust_accuracy_high": robust["ci95"][1],
        "test_images": robust["data"]["n"],
        "alpha": robust["alpha"],
        "parity_max_difference": exported["parity"]["max_difference"],
        "parity_label_flips": exported["parity"]["label_flips"],
    }
    for attack in robust["attacks"]:
        found[f"robust_accuracy_after_{_name(attack['name'])}"] = attack["robust_accuracy"]
    if baseline := robust.get("baseline"):
        found |= {f"baseline_{key}": baseline[key] for key in ("clean_accuracy", "robust_accuracy")}
    return {key: float(value) for key, value in (found | beyond(robust)).items() if value is not None}


def beyond(robust: dict[str, Any]) -> dict[str, float]:
    """Other threats, their union, corruptions, and the mean over radii, where they were measured."""
    found: dict[str, float] = {}
    for row in robust.get("also", []):
        name = f"also_{_name(row['what'])}"
        found |= {name: row["accuracy"], f"{name}_low": row["ci95"][0], f"{name}_high": row["ci95"][1]}
    if expected := robust.get("expected_robustness"):
        found["expected_robustness"] = expected["accuracy"]
    return found


def _name(text: str) -> str:
    """MLflow allows few characters in the name of a metric."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def log_metrics(mlflow: ModuleType, run_id: str, values: Mapping[str, float], model_id: str | None = None) -> None:
    mlflow.log_metrics(dict(values), run_id=run_id, model_id=model_id)


def log_files(
    client: MlflowClient, run_id: str, evidence: Evidence, plots: Mapping[str, str], extra: list[Path]
) -> None:
    """Evidence under the paths that it has in the repository, plots to look at, and what else goes with it."""
    for name in (*FILES, *(name for name in evidence.manifest if name.startswith(EXPORT) and name != ONNX)):
        client.log_artifact(run_id, str(evidence.path(name)), f"{EVIDENCE}/{Path(name).parent}")
    for name in ("dvc.lock", "params.yaml", "dvc.yaml"):
        if evidence.path(name).is_file():
            client.log_artifact(run_id, str(evidence.path(name)), EVIDENCE)
    for name, svg in plots.items():
        client.log_text(run_id, standalone(svg), f"plots/{name}.svg")
    for path in extra:
        client.log_artifact(run_id, str(path))
    client.log_dict(run_id, evidence.manifest, f"{EVIDENCE}/manifest.json")
