"""What a rebuild has come to, read from the files that the stages wrote: rows for people, and where to look further."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from autolora.common.files import read_json
from pipelines.workspace.commits import WorkspaceError


def rows(folder: Path, done: list[dict[str, Any]]) -> list[dict[str, str]]:
    """One table of stages and figures: clean, robust, what stood after each attack, seconds as the stages took them."""
    return [*figures(folder), *(_stage_row(folder, row) for row in done)]


def figures(folder: Path) -> list[dict[str, str]]:
    """Empty where the run ended before `evaluate`."""
    report = _read(folder / "reports" / "robustness.json")
    if not report:
        return []
    twin = report.get("baseline") or {}
    attacks = {a["name"]: a["robust_accuracy"] for a in report.get("attacks", [])}
    twin_attacks = {a["name"]: a["robust_accuracy"] for a in twin.get("attacks", [])}
    return [
        _figure("clean accuracy", report.get("clean_accuracy"), twin.get("clean_accuracy")),
        _figure("robust accuracy", report.get("robust_accuracy"), twin.get("robust_accuracy")),
        *(_figure(f"after {name}", value, twin_attacks.get(name)) for name, value in attacks.items()),
    ]


def _figure(what: str, model: float | None, twin: float | None) -> dict[str, str]:
    return {"what": what, "model": _percent(model), "natural twin": _percent(twin), "seconds": ""}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _stage_row(folder: Path, row: dict[str, Any]) -> dict[str, str]:
    """What the stage says it took; where DVC spared it, what it took when it last ran."""
    timing = _read(folder / "reports" / "timing" / f"{row['stage']}.json") or {}
    return {
        "what": f"stage {row['stage']}",
        "model": row["what"],
        "natural twin": "",
        "seconds": f"{row['seconds']:g} (stage alone: {timing['seconds']:g})" if timing else f"{row['seconds']:g}",
    }


def links(folder: Path) -> dict[str, str]:
    """The MLflow run and the card, where `register` has written its receipt."""
    receipt = _read(folder / "models" / "registered.json") or {}
    card = folder / "reports" / "card.html"
    found = {"card": card.as_uri()} if card.is_file() else {}
    uri = str(receipt.get("tracking_uri", ""))
    if uri.startswith("http") and "experiment_id" in receipt:  # receipts of earlier commits have none
        found["mlflow"] = f"{uri.rstrip('/')}/#/experiments/{receipt['experiment_id']}/runs/{receipt['run_id']}"
    return found


def summary(folder: Path, name: str, done: list[dict[str, Any]]) -> str:
    """The same in Markdown: it names the run also where MLflow has no address to click on (sqlite)."""
    receipt = _read(folder / "models" / "registered.json") or {}
    table = [f"| {' | '.join(row.values())} |" for row in rows(folder, done)]
    head = ["| what | model | natural twin | seconds |", "|---|---|---|---|"]
    where = [f"- [{what}]({link})" for what, link in links(folder).items()]
    if receipt:
        where.append(
            f"- {receipt.get('name')} version {receipt.get('version')}, MLflow run `{receipt.get('run_id')}` "
            f"on `{receipt.get('tracking_uri')}`"
        )
    return "\n".join([f"# {name}", "", *head, *table, "", *where])


def require_writable(to: Path) -> None:
    """Before anything is built: a pod that may not write where a sweep collects would say so after its last stage."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=to):
            pass
    except OSError as error:
        raise WorkspaceError(f"{_not_ours(to)} ({error.strerror}): results are kept in {to}") from None


def _not_ours(folder: Path) -> str:
    """The innermost folder that is there decides."""
    there = next(
        each for each in (folder, *folder.parents) if os.path.exists(each)
    )  # also where nobody may look inside
    mine = os.geteuid() if hasattr(os, "geteuid") else "unknown"
    return f"{there} belongs to uid {there.stat().st_uid}, and this run of uid {mine} cannot write there"


def collect(folder: Path, to: Path) -> None:
    """What a run leaves when its workspace goes: params, dvc.lock, reports, receipt. DVC's cache has the rest.

    Nothing of an earlier run stays among it."""
    for name in ("params.yaml", "dvc.lock", "models/registered.json"):
        (to / name).unlink(missing_ok=True)
    shutil.rmtree(to / "reports", ignore_errors=True)
    for name in ("params.yaml", "dvc.lock", "models/registered.json"):
        if (folder / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, to / name)
    if (folder / "reports").is_dir():
        shutil.copytree(folder / "reports", to / "reports", dirs_exist_ok=True)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
