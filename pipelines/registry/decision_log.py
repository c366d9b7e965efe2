"""The log of decisions: one MLflow run each, written before the alias moves and never changed. The registry keeps none.

Every entry names the one before it, so that an entry that was removed is missed.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from stages.evidence.provenance import git
from stages.tracking.client import experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

MOVED = ("promoted", "forced", "rolled back")
CONTENTS = ("content_key", "onnx_sha256", "canaries_sha256")


class Test(BaseModel):
    model_config = ConfigDict(extra="allow")
    p: float


class Grounds(BaseModel):
    findings: list[dict[str, Any]] = []
    tests: dict[str, Test] = {}


class Entry(BaseModel):
    """What every entry has; a run that has not is no decision."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: str
    alias: str
    version: int
    previous: int | None
    decision: str
    at: str
    by: str
    follows: str | None
    why: str | None = None
    withdraws: str | None = None
    evidence: Grounds = Grounds()


def complain(line: str) -> None:
    print(line, file=sys.stderr)


def entries(client: MlflowClient, name: str, report: Callable[[str], None] = complain) -> list[dict[str, Any]]:
    """All decisions on a model, oldest first, deleted ones too; what is no decision is reported and passed over."""
    found = client.get_experiment_by_name(_log_name())
    if found is None:
        return []
    records = []
    for run in _all_runs(client, found.experiment_id, f"tags.model = '{name}'"):
        try:
            entry = json.loads(run.data.tags.get("entry", "null"))
            Entry.model_validate(entry)
        except ValueError:  # pydantic's and json's are both of this kind
            report(f"  !! run {run.info.run_id} of the log is no decision (its entry is malformed): passed over")
            continue
        records.append(entry | {"id": run.info.run_id})
    return in_order(records)


def in_order(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what each entry follows; a clock that was set back changes nothing.

    Two that were written at the same moment follow the same one: only between them does the clock decide. So it does
    between what stands before and after an entry that was removed; what follows nothing comes first.
    """
    known = {r["id"]: r for r in records}
    place: dict[str, tuple[tuple[bool, str, str], int]] = {}

    def place_of(record: dict[str, Any]) -> tuple[tuple[bool, str, str], int]:
        """Which chain it belongs to, and where it stands in it."""
        path = [record]
        while (before := known.get(path[-1]["follows"])) and before["id"] not in place and before not in path:
            path.append(before)
        for one in reversed(path):
            above = place.get(one["follows"])
            start = (one["follows"] is not None, one["at"], one["id"])
            place[one["id"]] = (above[0], above[1] + 1) if above else (start, 0)
        return place[record["id"]]

    return sorted(records, key=lambda r: (*place_of(r), r["at"], r["id"]))


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
    before = entries(client, entry["model"], report=lambda line: None)
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
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or git(Path(), "config", "user.name") or _user()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        return f"uid {os.getuid()}"


def reigns(log: list[dict[str, Any]], alias: str) -> list[int]:
    """The versions that hold or held an alias and were not rolled back, the present one last."""
    found: list[int] = []
    for entry in _moves(log):
        if entry["alias"] != alias:
            continue
        if entry["decision"] == "rolled back":
            found = _back_to(entry["version"], found)
        else:
            if not found and entry["previous"] is not None:
                found.append(entry["previous"])
            found.append(entry["version"])
    return found


def _back_to(version: int, reigned: list[int]) -> list[int]:
    """Up to its last reign before the one that ends: a version may have reigned twice."""
    earlier = [place for place, one in enumerate(reigned[:-1]) if one == version]
    return reigned[: earlier[-1] + 1] if earlier else [version]


def contents(version: ModelVersion) -> dict[str, str | None]:
    """What a decision is about, byte for byte: deployment compares."""
    return {key: version.tags.get(key) for key in CONTENTS}


def explaining(log: list[dict[str, Any]], alias: str, version: int) -> dict[str, Any] | None:
    """The entry that brought the version to the alias."""
    last = last_of(log, alias)
    return last if last and last["version"] == version else None


def last_of(log: list[dict[str, Any]], alias: str) -> dict[str, Any] | None:
    """The entry that moved the alias last, or was about to."""
    return next((e for e in reversed(_moves(log)) if e["alias"] == alias), None)


def age(entry: dict[str, Any]) -> float:
    """Seconds since it was written."""
    return (datetime.now(UTC) - datetime.fromisoformat(entry["at"])).total_seconds()


def last_move(log: list[dict[str, Any]], version: int) -> dict[str, Any] | None:
    """The entry that brought the version to any alias last: of it the version's tags speak."""
    return next((e for e in reversed(_moves(log)) if e["version"] == version), None)


def _moves(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    withdrawn = {entry["withdraws"] for entry in log if "withdraws" in entry}
    return [e for e in log if e["decision"] in MOVED and e["id"] not in withdrawn]


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
