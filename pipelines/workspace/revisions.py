"""The code of another revision: where a module that the flows call lies there, since rooms move."""

from __future__ import annotations

import sys
from pathlib import Path

PARAMS = ("stages.common.params", "stages.params")  # newest place first
RUNNER = ("stages.common.runner", "stages.work")
TRACKING = ("stages.tracking.client", "stages.tracking")


def module_in(folder: Path, names: tuple[str, ...]) -> str | None:
    """The first of these modules that the revision in `folder` has."""
    return next((name for name in names if (folder / Path(*name.split("."))).with_suffix(".py").is_file()), None)


def schema_in(folder: Path) -> str | None:
    """The module that judges a params.yaml; without one nobody does, and that is said."""
    found = module_in(folder, PARAMS)
    if found is None:
        print(f"{folder} has no {' nor '.join(PARAMS)}: its params.yaml goes unchecked", file=sys.stderr)
    return found
