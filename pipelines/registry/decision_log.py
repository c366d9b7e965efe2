"""The log of decisions: one MLflow run each, written before the alias moves and never changed. The registry keeps none.

Every entry names the one before it, so that an entry that was removed is missed.
"""

from __future__ import annotations

import getpass
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.evidence.provenance import git
from stages.tracking.client import experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MOVED = ("promoted", "forced", "rolled back")


def entries(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """All decisions on a model, oldest first, deleted ones too."""
    found = client.get_experiment_by_name(_log_name())
    if found is None:
        return []
    runs = _all_runs(client, found.experiment_id, f"tags.model = '{name}'")
    records = [json.loads(run.data.tags["entry"]) | {"id": run.info.run_id} for run in runs]
    return sorted(records, key=lambda r: (r["at"], r["id"]))


def _all_runs(client: MlflowClient, experiment_id: str, where: str) -> list[Run]:
    """Page by page, deleted ones too."""
    from mlflow.entities import ViewType

    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], where, ViewType.ALL, max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            return found


def append(client: MlflowClient, entry: dict[str, Any]) -> dict[str, Any]:
    """One request, so that an entry is there whole or not at all."""
    before = entries(client, entry["model"])
    entry = {**entry, "at": now(), "by": who(), "follows": before[-1]["id"] if before else None}
    title = f"{entry['model']} {entry['version']} {entry['alias']} {entry['decision']}"
    tags = {
        "entry": json.dumps(entry, sort_keys=True),
        **{k: str(entry[k]) for k in ("model", "version", "alias", "decision")},
    }
    run = client.create_run(_experiment_id(client), tags=tags, run_name=title)
    client.set_terminated(run.info.run_id)
    return entry | {"id": run.info.run_id}


def _log_name() -> str:
    return f"{experiment()}-promotions"


def _experiment_id(client: MlflowClient) -> str:
    from mlflow import MlflowException

    found = client.get_experiment_by_name(_log_name())
    if found is not None:
        return found.experiment_id
    with suppress(MlflowException):  # somebody else has just created it
        return client.create_experiment(_log_name())
    return _experiment_id(client)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def who() -> str:
    """The name people go by at the tracking server, in git, or on this machine."""
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or git(Path(), "config", "user.name") or getpass.getuser()


def reigns(log: list[dict[str, Any]], alias: str) -> list[int]:
    """The versions that hold or held an alias and were not rolled back, the present one last."""
    found: list[int] = []
    withdrawn = {entry["withdraws"] for entry in log if "withdraws" in entry}
    for entry in log:
        if entry["alias"] != alias or entry["decision"] not in MOVED or entry["id"] in withdrawn:
            continue
        if entry["decision"] == "rolled back":
            found = found[: found.index(entry["version"]) + 1] if entry["version"] in found else [entry["version"]]
        else:
            if not found and entry["previous"] is not None:
                found.append(entry["previous"])
            found.append(entry["version"])
    return found


def lines(log: list[dict[str, Any]]) -> list[str]:
    """The log as people read it."""
    found: list[str] = []
    known: set[str | None] = {None}
    for entry in log:
        if entry["follows"] not in known:
            found.append("  !! an entry is missing here: it was removed from the log")
        known.add(entry["id"])
        found += [_line(entry)]
    return found


def _line(entry: dict[str, Any]) -> str:
    tests = entry.get("evidence", {}).get("tests", {})
    p = f", robust p = {tests['robust']['p']:.3g}" if "robust" in tests else ""
    against = f" (was {entry['previous']})" if entry["previous"] is not None else ""
    refused = "; ".join(f["what"] for f in entry.get("evidence", {}).get("findings", []) if not f["passed"])
    why = "".join(f", {key}: {text}" for key, text in (("against", refused), ("why", entry.get("why"))) if text)
    what = f"{entry['alias']} -> {entry['version']}{against}  {entry['decision']} by {entry['by']}"
    return f"{entry['at'][:19]}Z  {what}{p}{why}"
