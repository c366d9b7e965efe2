"""`autolora show` and `autolora verify`: what a file says of itself, and whether its hashes hold."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from autolora.command.models import read_onnx
from autolora.command.result import FLAGS, REPORT
from autolora.common.errors import BadArgument
from autolora.common.files import file_sha256, read_json
from autolora.export.notes import graph_sha256, notes_in
from autolora.export.write import show

FILE = "an .onnx file, a report.json, or the folder of an attack"


def add_to(commands: Any) -> None:
    for name, run, doc in (
        ("show", print_evidence, "What a file, or an attack's report, says of itself."),
        ("verify", verify, "Whether the hashes in a file, or in an attack's report, hold."),
    ):
        parser = commands.add_parser(name, doc=doc, help=doc, reads=FILE, writes="text on stdout")
        parser.add_argument("file", metavar="FILE", type=Path)
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
    record, folder = read_json(path), path.parent
    found = {
        name: (folder / name).is_file() and file_sha256(folder / name) == sha for name, sha in record["files"].items()
    }
    if found.get(FLAGS):
        flags = np.load(folder / FLAGS)
        shares = {key: float(flags[key].mean()) for key in ("clean", "robust")}
        agree = all(abs(share - record[f"{key}_accuracy"]) < 1e-9 for key, share in shares.items())
        found["accuracies are those of the flags"] = agree
    return found


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
