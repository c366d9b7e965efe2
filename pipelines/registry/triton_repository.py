"""A Triton model repository: config.pbtxt, numbered version folders, and what was deployed when.

FOLDER/NAME/config.pbtxt        which version is served; replaced whole
FOLDER/NAME/3/model.onnx        appears whole, by a rename
FOLDER/NAME/deployed.json       the served version, what is on trial, those before it, those that were refused

Intent first (`begin`: a version is on trial), then the configuration (`point`), then the outcome (`commit`, `abandon`),
each on the disk before the next. `repair` brings the three together again after a death at any moment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from autolora.common.files import file_sha256, flushed, read_json, write_json, write_text
from pipelines.registry.triton_config import config, labels

STATE = "deployed.json"
CONFIG = "config.pbtxt"
MODEL_FILE = "model.onnx"
POLICY = re.compile(r"versions: \[ ?(\d*) ?\]")
Event = dict[str, Any]


def nothing() -> dict[str, Any]:
    return {"current": None, "trial": None, "events": [], "refused": {}, "sha256": {}, "signed": {}}


def state(model: Path) -> dict[str, Any]:
    """What is served here: {"current": 3, "trial": null, "events": [...], "refused": {"4": "why"}, ...}."""
    path = model / STATE
    return nothing() | (read_json(path) if path.is_file() else {})


def save(model: Path, record: dict[str, Any]) -> None:
    write_json(model / STATE, record)


def write_version(model: Path, number: int, onnx_file: Path) -> Path:
    """The file as version folder: absent, then whole. The same version again is replaced."""
    part = model / f".{number}.{os.getpid()}.part"  # Triton ignores folders whose name is no number
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copyfile(onnx_file, part / MODEL_FILE)
    flushed(part / MODEL_FILE)
    flushed(part)
    shutil.rmtree(model / str(number), ignore_errors=True)
    part.rename(model / str(number))
    flushed(model)
    return model / str(number) / MODEL_FILE


def begin(model: Path, number: int, *, gpu: bool) -> None:
    """Put a version on trial. Until it is committed, whoever looks next goes back to the one before."""
    record = state(model)
    save(model, record | {"trial": {"version": number, "before": record["current"]}, "gpu": gpu})


def point(model: Path, number: int | None, *, gpu: bool) -> None:
    """Have the server serve this version, or none."""
    policy = f"version_policy: {{ specific {{ versions: [ {'' if number is None else number} ] }} }}\n"
    if number is None:
        return write_text(model / CONFIG, f'name: {json.dumps(model.name)}\nbackend: "onnxruntime"\n{policy}')
    file = model / str(number) / MODEL_FILE
    write_text(model / "labels.txt", "".join(f"{label}\n" for label in labels(file)))
    write_text(model / CONFIG, config(file, model.name, gpu=gpu) + policy)


def pointed_at(model: Path) -> int | None:
    """What config.pbtxt names."""
    path = model / CONFIG
    found = POLICY.search(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return int(found[1]) if found and found[1] else None


def commit(model: Path, event: Event) -> None:
    """The version on trial is the served one."""
    record = state(model)
    number, before = record["trial"]["version"], record["trial"]["before"]
    record["events"] = _counted(record["events"], {"version": number, "before": before, **event})
    record["refused"].pop(str(number), None)
    record["sha256"][str(number)] = file_sha256(model / str(number) / MODEL_FILE)
    save(model, record | {"current": number, "trial": None})


def abandon(model: Path, event: Event, why: str | None = None) -> int | None:
    """Serve again what was served before the trial, or nothing; `why`: the version is not tried a second time."""
    record = state(model)
    number, before = record["trial"]["version"], record["trial"]["before"]
    back = before if before != number and is_whole(model, before, record) else None
    point(model, back, gpu=bool(record.get("gpu")))
    record["events"] = _counted(record["events"], {"version": number, "before": before, **event})
    if why is not None:
        record["refused"][str(number)] = why
    save(model, record | {"current": back, "trial": None})
    remove(model, number)
    return back


def refuse(model: Path, number: int, why: str) -> None:
    """Remember a version that failed before it was on trial."""
    record = state(model)
    record["refused"][str(number)] = why
    save(model, record)


def note_signature(model: Path, number: int, key: str) -> None:
    """With which public key (its sha256) the version was found to be signed."""
    record = state(model)
    record["signed"][str(number)] = key
    save(model, record)


def signed_by(model: Path, number: int) -> str | None:
    return state(model)["signed"].get(str(number))


def go_back(model: Path, number: int, event: Event, why: str) -> None:
    """From the present version to an earlier one, which is served whatever happens on the way."""
    record = state(model)
    save(model, record | {"trial": {"version": number, "before": record["current"], "back": [event, why]}})
    _arrive(model)


def _arrive(model: Path) -> None:
    record = state(model)
    number, left, (event, why) = (record["trial"][key] for key in ("version", "before", "back"))
    point(model, number, gpu=bool(record.get("gpu")))
    record["events"] = _counted(record["events"], {"version": number, "before": left, **event})
    record["refused"] = {key: text for key, text in record["refused"].items() if key != str(number)} | {str(left): why}
    save(model, record | {"current": number, "trial": None})


def repair(model: Path, event: Event) -> str | None:
    """Bring intent, configuration and record together; what was done, or None where they agree."""
    said = _readable(model)
    for part in model.glob(".*.part"):  # left by a deployment that was killed
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    record = state(model)
    if record["trial"] and "back" in record["trial"] and is_whole(model, record["trial"]["version"], record):
        _arrive(model)
        return f"the way back to version {record['trial']['version']} was finished"
    if record["trial"]:
        back = abandon(model, event)
        return f"a deployment of version {record['trial']['version']} had died: {in_words(back)}"
    served = record["current"] if is_whole(model, record["current"], record) else None
    if served != record["current"] or served != pointed_at(model):
        point(model, served, gpu=bool(record.get("gpu")))
        save(model, record | {"current": served})
        return f"configuration and record did not agree: {in_words(served)}"
    return said


def _readable(model: Path) -> str | None:
    """A record that cannot be read is set aside; what the configuration names is looked at anew by whoever deploys."""
    try:
        record = state(model)
        assert all(isinstance(record[key], type(value)) for key, value in nothing().items() if value is not None)
        return None
    except (ValueError, TypeError, AssertionError):
        (model / STATE).replace(model / f"{STATE}.unreadable")
        named = pointed_at(model)
        save(model, nothing() | {"current": named if is_whole(model, named, nothing()) else None})
        return f"{STATE} could not be read, and is {STATE}.unreadable now"


def in_words(number: int | None) -> str:
    return "nothing is served" if number is None else f"version {number} is served"


def is_whole(model: Path, number: int | None, record: dict[str, Any]) -> bool:
    """Is its file there, as it was when it was committed?"""
    file = model / str(number) / MODEL_FILE
    return number is not None and file.is_file() and record["sha256"].get(str(number)) in (None, file_sha256(file))


def _counted(events: list[Event], new: Event) -> list[Event]:
    """With the new one at the end; what comes back at every look (tried, taken back, ...) is counted, not listed."""
    if _what(events[-1:]) == _what([new]):
        return [*events[:-1], {**new, "times": events[-1].get("times", 1) + 1}]
    return [*events, new]


def _what(events: list[Event]) -> list[tuple[Any, ...]]:
    return [(event["version"], event["before"], event["what"]) for event in events]


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
    return gone
