"""What weights the pipeline accepts: only those whose content DVC can know."""

from __future__ import annotations

from pathlib import Path

from autolora.common.downloads import fetch, shown
from autolora.common.errors import BadArgument
from autolora.common.files import file_sha256
from stages.common.contradictions import PRETRAINED, inside_pretrained
from stages.common.runner import work_root


def resolve_weights(weights: str | None, sha256: str | None = None, pretrained: Path = PRETRAINED) -> Path | None:
    """The local file: it lies in `pretrained`, which DVC watches, or its sha256 is given."""
    if weights is None:
        return None
    path = fetch(weights, sha256, work_root() / "downloads")
    if sha256 is None and not inside_pretrained(path, pretrained):
        raise BadArgument(
            "weights",
            shown(weights),
            f"it lies outside {pretrained}/, where DVC does not see it change: put its content on record with "
            f"backbone.sha256: {file_sha256(path)}",
        )
    return path
