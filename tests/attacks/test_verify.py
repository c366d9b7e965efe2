"""`autolora verify`: hashes inside a file, and signatures over it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from autolora.command.main import main
from autolora.command.result import EXAMPLES, FLAGS, REPORT
from autolora.common.files import file_sha256, read_json, write_json
from autolora.common.statistics import wilson
from autolora.data.sample import ids_sha256
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


L2 = {"accuracy": 2 / 6, "ci95": list(wilson(2, 6))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of two classes, four of which stand, and a second threat."""
    flags = np.zeros(6, [("id", "S64"), ("label", "i8"), ("clean", "?"), ("robust", "?"), ("l2:0.5", "?")])
    flags["id"], flags["label"], flags["clean"] = [f"{i}".encode() for i in range(6)], [0, 0, 0, 1, 1, 1], True
    flags["robust"], flags["l2:0.5"] = [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]
    np.save(tmp_path / FLAGS, flags)
    (tmp_path / EXAMPLES).write_bytes(b"images")
    rows = [{"class": "a", "n": 3, "clean": 1.0, "robust": 1.0}, {"class": "b", "n": 3, "clean": 1.0, "robust": 1 / 3}]
    also = [
        {"what": "l2:0.5", **L2, "attacks": [{"name": "apgd-ce", "robust_accuracy": 2 / 6}]},
        {"what": "union", **L2, "threats": ["linf:8/255", "l2:0.5"]},
    ]
    attacks = [{"name": "apgd-ce", "robust_accuracy": 5 / 6}, {"name": "apgd-t", "robust_accuracy": 4 / 6}]
    record = {
        "clean_accuracy": 1.0, "robust_accuracy": 4 / 6, "ci95": list(wilson(4, 6)), "by_class": rows, "also": also,
        "attacks": attacks,
        "data": {"n": 6, "ids_sha256": ids_sha256([str(i) for i in range(6)])},
        "files": {name: file_sha256(tmp_path / name) for name in (FLAGS, EXAMPLES)},
    }  # fmt: skip
    write_json(tmp_path / REPORT, record)
    return tmp_path


def test_a_report_is_held_against_its_flags(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert ended("verify", folder) == 0
    assert capsys.readouterr().out.count("holds") == 8


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"robust_accuracy": 1.0}, "accuracies are those of the flags"),
        ({"clean_accuracy": 4 / 6}, "accuracies are those of the flags"),
        ({"ci95": [0.6, 0.7]}, "the interval is of these accuracies"),
        ({"data": {"n": 10_000, "ids_sha256": "0" * 64}}, "images are those of the flags"),
        ({"by_class": []}, "classes are those of the flags"),
        ({"also": [{"what": "l2:0.5", **L2, "accuracy": 0.9}]}, "l2:0.5 is that of the flags"),
        ({"also": [{"what": "l2:0.5", **L2, "ci95": [0.3, 0.4]}]}, "l2:0.5 is that of the flags"),
        ({"also": [{"what": "l2:0.5", **L2, "attacks": [{"robust_accuracy": 0.9}]}]}, "l2:0.5 is that of the flags"),
        ({"attacks": [{"name": "apgd-ce", "robust_accuracy": 0.9}]}, "accuracies are those of the flags"),
        ({"ci95": []}, "the interval is of these accuracies"),
        ({"files": {}}, "robust_flags.npy"),
    ],
)
def test_an_altered_report_differs(folder: Path, capsys: pytest.CaptureFixture, change: dict, said: str) -> None:
    write_json(folder / REPORT, read_json(folder / REPORT) | change)
    assert ended("verify", folder) == 1
    assert f"DIFFERS {said}" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"files": 3}', "null"])
def test_what_is_no_report_is_said(folder: Path, capsys: pytest.CaptureFixture, text: str) -> None:
    (folder / REPORT).write_text(text)
    assert ended("verify", folder) == 2
    assert "it is no report that an attack wrote" in capsys.readouterr().err
