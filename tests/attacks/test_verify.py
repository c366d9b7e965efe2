"""`autolora verify`: hashes inside a file, and signatures over it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from autolora.command.main import main
from autolora.export.notes import set_notes
from tests.attacks import colours


def ended(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A file that carries notes, as exported ones do."""
    model = onnx.load(colours.write(tmp_path / "model.onnx"))
    set_notes(model, {"threat": "linf:8/255"})
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_weight_that_was_changed_shows(ours: Path, capsys: pytest.CaptureFixture) -> None:
    assert ended("verify", ours) == 0
    model = onnx.load(ours)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, ours)
    assert ended("verify", ours) == 1
    assert "DIFFERS graph_sha256" in capsys.readouterr().out


def test_a_file_without_a_hash_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert ended("verify", colours.write(tmp_path / "model.onnx")) == 2
    assert "it holds no hash of itself; its sha256 is " in capsys.readouterr().err


def test_a_signature_belongs_to_one_key_and_one_content(ours: Path, capsys: pytest.CaptureFixture) -> None:
    signing = pytest.importorskip("model_signing.signing")
    keys = []
    for name in ("one", "two"):
        private, public = ours.with_name(f"{name}.pem"), ours.with_name(f"{name}.pub")
        made = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
        subprocess.run(made, check=True, capture_output=True)
        shown = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
        subprocess.run(shown, check=True, capture_output=True)
        keys.append(public)
    signature = ours.with_name("model.sig")
    signing.Config().use_elliptic_key_signer(private_key=ours.with_name("one.pem")).sign(ours, signature)
    told = ("verify", ours, "--signature", signature, "--key")
    assert ended(*told, keys[0]) == 0
    assert ended(*told, keys[1]) == 1
    assert "DIFFERS signed with" in capsys.readouterr().out
    ours.write_bytes(ours.read_bytes() + b"\0\0")
    assert ended(*told, keys[0]) == 2
    assert "is no ONNX file, or it is damaged" in capsys.readouterr().err
    assert ended("verify", ours, "--key", keys[0]) == 2
