"""Where workspaces write to MLflow, and a sweep as a parent run with a child per cell.

Files are the truth: without a server nothing is lost.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolora.common.files import read_json
from pipelines.execution import commands
from pipelines.sweeps.comparison import Result
from pipelines.sweeps.grid import Sweep
from pipelines.workspace.revisions import TRACKING, module_in
from stages.common.runner import StageError
from stages.tracking import client as tracking
from stages.tracking.client import SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"


def record(
    source: Path, sweep: Sweep, commit: str, done: Sequence[Result], files: Sequence[Path], warn: Callable[[str], Any]
) -> None:
    """Find or create the parent of this sweep at this commit, and give it its children and the table as it is now."""
    with chdir(source):  # sqlite by default lies in the folder that one works in
        try:
            mlflow = tracking.connect()
        except StageError as error:
            warn(f"{error} The table is in {files[0].parent}; give the sweep again to write it to MLflow.")
            return
        try:
            _write(
                mlflow.MlflowClient(),
                tracking.experiment_id(mlflow),
                {"sweep": sweep.name, "git_sha": commit},
                done,
                files,
            )
        except mlflow.MlflowException as error:  # the server went away in the middle
            warn(f"{error} The table is in {files[0].parent}; give the sweep again to write it to MLflow.")


def _write(
    client: MlflowClient, experiment: str, tags: dict[str, str], done: Sequence[Result], files: Sequence[Path]
) -> None:
    parent = _run(client, experiment, f"sweep {tags['sweep']}", tags)
    for result in done:
        _child(client, experiment, parent, result)
    for file in files:
        client.log_artifact(parent, str(file))
    client.set_terminated(parent, "FINISHED")


def uri(source: Path) -> str:
    """The same for all workspaces of a clone: the server, else sqlite beside the source.

    Without a server MLflow puts artifacts where the experiment was created: not in a workspace that goes away.
    """
    with chdir(source):
        chosen = tracking.tracking_uri()
    if chosen.startswith(SQLITE):
        chosen = f"{SQLITE}{source / chosen.removeprefix(SQLITE)}"
    new = chosen.startswith(SQLITE) and not tracking.database_file(chosen).exists()
    if new and (module := module_in(source, TRACKING)):
        code = f"from {module} import connect, experiment_id; experiment_id(connect())"
        env = commands.environment(MLFLOW_TRACKING_URI=chosen)
        subprocess.run([sys.executable, "-c", code], cwd=source, env=env, check=True)
    return chosen


def _run(client: MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> str:
    """The run with these tags; a second time it is found, not made again."""
    quotes = {key: '"' if "'" in value else "'" for key, value in tags.items()}  # a file may be called John's.yaml
    clauses = " and ".join(f"tags.`{key}` = {quotes[key]}{value}{quotes[key]}" for key, value in tags.items())
    found = client.search_runs([experiment], filter_string=clauses, max_results=1)
    return found[0].info.run_id if found else client.create_run(experiment, run_name=name, tags=tags).info.run_id


def _child(client: MlflowClient, experiment: str, parent: str, result: Result) -> None:
    """The run that `register` has written, where the cell came so far; else one with the cell's figures."""
    receipt = result.folder / "models" / "registered.json"
    if receipt.is_file():
        client.set_tag(read_json(receipt)["run_id"], PARENT, parent)
        return
    child = _run(client, experiment, result.cell.name(), {PARENT: parent, "cell": result.cell.name()})
    for key, value in (result.cell.axes | result.cell.overrides).items():
        client.log_param(child, key, value)
    if result.has_report():
        for name in ("clean_accuracy", "robust_accuracy"):
            client.log_metric(child, name, result.report[name])
        client.log_artifacts(child, str(result.folder / "reports"), "reports")
    client.set_terminated(child, "FINISHED")
