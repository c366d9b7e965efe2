"""`autolora show` and `autolora verify`: what a file says of itself, and whether its hashes hold."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from autolora.attacks.also_flags import accuracy_of
from autolora.command.models import read_onnx
from autolora.command.result import EXAMPLES, FLAGS, REPORT
from autolora.common.errors import BadArgument, first_line
from autolora.common.files import file_sha256, read_json
from autolora.common.statistics import wilson
from autolora.data.sample import ids_sha256
from autolora.export.notes import graph_sha256, notes_in
from autolora.export.write import show

FILE = "an .onnx file, a report.json, or the folder of an attack"


def add_to(commands: Any) -> None:
    for name, run, doc in (
        ("show", print_evidence, "What a file, or an attack's report, says of itself."),
        ("verify", verify, "Whether the hashes in a file, or in an attack's report, hold."),
    ):
        parser = commands.add_parser(name, doc=doc, help=doc, reads=FILE, writes="text on stdout")
        parser.add_argument("file", metavar="FILE", type=Path, help=FILE)
        if run is verify:
            parser.add_argument("--signature", type=Path, help="a file that model-signing wrote over FILE")
            parser.add_argument("--key", type=Path, help="the public key in PEM that must have signed it")
        parser.set_defaults(run=run)


def print_evidence(chosen: argparse.Namespace) -> int:
    path = _report(chosen.file)
    told = read_json(path) if path.name == REPORT else show(path)
    with contextlib.suppress(BrokenPipeError):  # ... | head
        print(json.dumps(told, indent=2, ensure_ascii=False), flush=True)
    return 0


def verify(chosen: argparse.Namespace) -> int:
    if (chosen.signature is None) != (chosen.key is None):
        raise BadArgument("signature", str(chosen.signature), "--signature and --key belong together")
    path = _report(chosen.file)
    found = _of_report(path) if path.name == REPORT else _of_file(path, alone=chosen.signature is None)
    if chosen.signature is not None:
        found[f"signed with {chosen.key}"] = signed(chosen.file, chosen.signature, chosen.key)
    for name, holds in found.items():
        print(f"{'holds' if holds else 'DIFFERS':<8}{name}")
    return 0 if all(found.values()) else 1


def _report(path: Path) -> Path:
    """A folder stands for its report."""
    inside = path / REPORT if path.is_dir() else path
    if not inside.is_file():
        raise BadArgument("file", str(path), f"expected {FILE}")
    return inside


def _of_report(path: Path) -> dict[str, bool]:
    """Both files that bear the report out must be there, and every figure that follows from the flags be theirs."""
    folder = path.parent
    try:
        record = read_json(path)
        found = {
            name: (folder / name).is_file() and file_sha256(folder / name) == record["files"].get(name)
            for name in (FLAGS, EXAMPLES)
        }
        return found | (_of_flags(record, np.load(folder / FLAGS, allow_pickle=False)) if found[FLAGS] else {})
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadArgument("file", str(path), f"it is no report that an attack wrote ({first_line(error)})") from None


def _of_flags(record: dict[str, Any], flags: np.ndarray) -> dict[str, bool]:
    clean, robust, n = flags["clean"], flags["robust"], len(flags)
    shares = [(record["clean_accuracy"], clean.mean()), (record["robust_accuracy"], robust.mean())]
    shares += [(attack["robust_accuracy"], robust.mean()) for attack in record["attacks"][-1:]]
    images = [i.decode() for i in flags["id"].tolist()]
    classes = [
        {"n": int(of.sum()), "clean": clean[of].mean(), "robust": robust[of].mean()}
        for of in (flags["label"] == label for label in np.unique(flags["label"]))
    ]
    told = [{key: row[key] for key in ("n", "clean", "robust")} for row in record["by_class"]]
    found = {
        "accuracies are those of the flags": all(_close(*pair) for pair in shares),
        "images are those of the flags": (record["data"]["n"], record["data"]["ids_sha256"]) == (n, ids_sha256(images)),
        "the interval is of these accuracies": _is_interval(record["ci95"], int(robust.sum()), n),
        "classes are those of the flags": len(told) == len(classes)
        and all(_close(said[key], row[key]) for said, row in zip(told, classes) for key in row),
    }
    for row in record.get("also") or []:
        found[f"{row['what']} is that of the flags"] = _is_of_flags(row, accuracy_of(row, flags), n)
    return found


def _is_of_flags(row: dict[str, Any], share: float, n: int) -> bool:
    """Its accuracy, its interval, and what the last attack of a threat has left."""
    said = [row["accuracy"], *(attack["robust_accuracy"] for attack in row.get("attacks", [])[-1:])]
    return all(_close(each, share) for each in said) and _is_interval(row["ci95"], share * n, n)


def _is_interval(said: list[float], right: float, n: int) -> bool:
    return len(said) == 2 and all(map(_close, said, wilson(right, n)))


def _close(said: float, found: float) -> bool:
    return abs(said - found) < 2e-6


def _of_file(path: Path, *, alone: bool) -> dict[str, bool]:
    model = read_onnx(path)
    said = notes_in(model).get("graph_sha256")
    if said is None and alone:
        raise BadArgument("file", str(path), f"it holds no hash of itself; its sha256 is {file_sha256(path)}")
    return {} if said is None else {"graph_sha256": said == graph_sha256(model)}


def signed(path: Path, signature: Path, key: Path) -> bool:
    """By OpenSSF's model-signing, offline, over a file or a folder."""
    try:
        from model_signing import verifying
    except ImportError:
        raise ValueError("signatures need the package model-signing") from None
    for file in (signature, key):
        if not file.is_file():
            raise BadArgument("signature", str(file), "there is no such file")
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(path, signature)
    except Exception:  # of many kinds: another key, another content, another form
        return False
    return True
