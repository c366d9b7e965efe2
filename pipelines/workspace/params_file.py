"""params.yaml of a workspace: a preset, other values, and what the schema says of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.execution import commands
from pipelines.execution.parameters import inside
from pipelines.workspace.commits import WorkspaceError
from pipelines.workspace.revisions import PARAMS, RUNNER, module_in, schema_in
from stages.common.yaml_text import NotYaml, parsed, short


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """["finetune.method=vanilla", "seed=1"] -> {"finetune.method": "vanilla", "seed": 1}"""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise WorkspaceError(f"override {short(repr(text))}: expected KEY=VALUE, as in finetune.method=vanilla")
        if key.strip() in found:
            raise WorkspaceError(f"override {short(key)} is given twice")
        try:
            found[key.strip()] = parsed(value)
        except NotYaml as error:
            raise WorkspaceError(f"override {short(key)}: its value {error}") from None
    return found


def use_preset(folder: Path, preset: str | None) -> None:
    """A whole params.yaml of the revision instead of its own."""
    if preset is None:
        return
    if not inside(folder, preset, "preset").is_file():
        known = sorted(str(file.relative_to(folder)) for file in (folder / "presets").glob("*.yaml"))
        raise WorkspaceError(f"there is no preset {preset} in this revision: there are {', '.join(known) or 'none'}")
    shutil.copy(folder / preset, folder / "params.yaml")


def override(folder: Path, overrides: Mapping[str, Any]) -> None:
    """Write the overrides into params.yaml; the revision's own schema, where it has one, is the judge."""
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text()) if file.is_file() else {}
    schema = schema_in(folder) is not None
    for key, value in overrides.items():
        put(params, key, value, allow_new=schema)
    if overrides:
        file.write_text(yaml.safe_dump(params, sort_keys=False))
    if schema:
        judge(folder, folder, ["params.yaml"])


def put(params: dict[str, Any], key: str, value: Any, *, allow_new: bool) -> None:
    *parents, last = key.split(".")
    section: Any = params
    for part in parents:
        if not isinstance(section, dict) or not isinstance(section.get(part), dict):
            raise WorkspaceError(f"override {key}: params.yaml has no section {part!r}; it has {', '.join(params)}")
        section = section[part]
    if last not in section and not allow_new:
        raise WorkspaceError(f"override {key}: params.yaml has no such key; there are {', '.join(section)}")
    if not parents and isinstance(section.get(last), dict) and isinstance(value, dict):
        of_it = ", ".join(f"{key}.{one}" for one in value) or f"{key}.KEY"
        raise WorkspaceError(f"override {key}: it would set all of this section anew; give {of_it}")
    section[last] = value


def judge(source: Path, folder: Path, files: Sequence[str]) -> None:
    """What the schema of `source` says about these files in `folder`: in a process, it may be another revision's."""
    code = (
        f"import sys\nimport {module_in(source, PARAMS)} as params, {module_in(source, RUNNER)} as runner\n"
        "def override():\n    for file in sys.argv[1:]: params.check(file)\nrunner.main(override)"
    )
    env = commands.environment(PYTHONPATH=str(source))
    done = subprocess.run([sys.executable, "-c", code, *files], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise WorkspaceError(done.stderr.strip())
