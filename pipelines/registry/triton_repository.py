"""A Triton model repository: config.pbtxt, numbered version folders, and what was deployed when.

FOLDER/NAME/config.pbtxt        which version is served; replaced whole
FOLDER/NAME/3/model.onnx        appears whole, by a rename
FOLDER/NAME/deployed.json       the served version, those before it, those that were refused
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autolora.common.files import read_json, write_json, write_text
from pipelines.registry.triton_config import config, labels

STATE = "deployed.json"
MODEL_FILE = "model.onnx"


def state(model: Path) -> dict[str, Any]:
    """What is served here: {"current": 3, "events": [...], "refused": {"4": "why"}}."""
    path = model / STATE
    return read_json(path) if path.is_file() else {"current": None, "events": [], "refused": {}}


def write_version(model: Path, number: int, onnx_file: Path) -> Path:
    """The file as version folder: absent, then whole. The same version again is replaced."""
    part = model / f".{number}.{os.getpid()}.part"  # Triton ignores folders whose name is no number
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copyfile(onnx_file, part / MODEL_FILE)
    _sync(part / MODEL_FILE)
    shutil.rmtree(model / str(number), ignore_errors=True)
    part.rename(model / str(number))
    return model / str(number) / MODEL_FILE


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def serve(model: Path, number: int, event: dict[str, Any], *, gpu: bool | None = None) -> None:
    """Point config.pbtxt at a version that is there, and keep that in the record; `gpu` None: as it was."""
    record, file = state(model), model / str(number) / MODEL_FILE
    record["gpu"] = bool(record.get("gpu") if gpu is None else gpu)
    policy = f"version_policy: {{ specific {{ versions: [ {number} ] }} }}\n"
    write_text(model / "labels.txt", "".join(f"{label}\n" for label in labels(file)))
    write_text(model / "config.pbtxt", config(file, model.name, gpu=record["gpu"]) + policy)
    record["events"] = _counted(record["events"], {"version": number, "before": record["current"], **event})
    record["refused"].pop(str(number), None)
    write_json(model / STATE, record | {"current": number})


def _counted(events: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """With the new one at the end; what comes back at every look (deployed, taken back, ...) is counted, not listed."""
    for period in (1, 2):
        if _what(events[-period:][:1]) == _what([new]):
            return [*events[:-period], {**new, "times": events[-period].get("times", 1) + 1}]
    return [*events, new]


def _what(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(event["version"], event["before"], event["what"]) for event in events]


def refuse(model: Path, number: int, why: str) -> None:
    """Remember a version that failed, and remove its folder: nobody serves it by accident."""
    record = state(model)
    record["refused"][str(number)] = why
    write_json(model / STATE, record)
    remove(model, number)


def remove(model: Path, number: int) -> None:
    shutil.rmtree(model / str(number), ignore_errors=True)


def versions(model: Path) -> list[int]:
    return sorted(int(p.name) for p in model.iterdir() if p.is_dir() and p.name.isdigit())


def prune(model: Path, keep: int, spare: Iterable[int | None]) -> list[int]:
    """Remove all but the `keep` newest folders and those to spare; returns what was removed."""
    found = versions(model)
    gone = [v for v in found[: max(0, len(found) - keep)] if v not in set(spare)]
    for number in gone:
        shutil.rmtree(model / str(number))
    for part in model.glob(".*.part"):  # left by a deployment that was killed
        shutil.rmtree(part, ignore_errors=True)
    return gone
