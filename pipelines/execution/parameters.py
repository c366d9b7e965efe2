"""What a run may be told. Whoever reaches the Prefect server can start one: names and paths are taken for hostile."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*$")]  # of a model, as params.yaml takes it
NameAndAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]*(@[A-Za-z0-9][A-Za-z0-9_-]*)?$")]
Revision = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/@{}^~-]*$")]  # no option of git


class ParameterError(ValueError):
    pass


def inside(root: Path, named: str, what: str) -> Path:
    """The file or folder, which must lie in `root`, whatever links lead to."""
    if "\0" in named:
        raise ParameterError(f"{what} {named!r} is not inside {root}: it is no path")
    path = (root / named).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ParameterError(f"{what} {named!r} is not inside {root}")
    return path


def own_clone(folder: Path) -> Path:
    """A run that a worker has started works in the worker's clone, and nowhere else."""
    if started_by_a_worker() and folder.resolve() != Path.cwd().resolve():
        raise ParameterError(f"folder {str(folder)!r} is not the worker's clone, {Path.cwd()}")
    return folder.resolve()


def started_by_a_worker() -> bool:
    return "PREFECT__FLOW_RUN_ID" in os.environ


def service(named: str | None) -> Path:
    """Where deployments go on this worker: AUTOLORA_SERVICE, or `service` in its clone; or a folder inside.

    A path from the clone that leads inside is taken as such, any other relative one is from that root.
    """
    root = Path(os.environ.get("AUTOLORA_SERVICE") or "service").resolve()
    with suppress(ParameterError):
        return inside(root, str(Path.cwd() / (named or root)), "to")
    return inside(root, named or ".", "to")
