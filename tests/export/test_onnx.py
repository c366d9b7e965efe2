"""One ONNX file: the same bytes wherever it is written, refused where it would be another network, whole or absent."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autolora.common.files import write_bytes
from autolora.export.conversion import ExportError, checked, torch_logits, traced
from autolora.export.notes import notes_in
from autolora.export.runtime import (
    BadImages,
    BadModel,
    as_bytes,
    as_input,
    check_images,
    image_shape,
    logits,
    open_session,
)
from autolora.export.write import evidence, export_onnx, main, show
from tests.export.nets import Bessel, Fickle, TwoImages, Undecided, tiny

ROBUSTNESS = {
    "threat": {"text": "linf:8/255"},
    "data": {"n": 200, "ids_sha256": "d" * 64},
    "weights_sha256": "e" * 64,
    "alpha": 0.0,
    "version": "standard",
    "clean_accuracy": 0.9,
    "robust_accuracy": 0.5,
    "ci95": [0.4314, 0.5686],
}


def images(n: int = 9, size: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 3, size, size)).astype(np.float32) / 255


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(tiny(), path, evidence(ROBUSTNESS, ["zero", "één"], "Apache-2.0", toward="branch"))
    return path


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 9])
def test_the_file_answers_as_torch_does_at_every_batch(exported: Path, batch: int) -> None:
    x = images()
    assert np.abs(logits(open_session(exported), x, batch) - torch_logits(tiny(), x)).max() < 1e-5


def test_one_file_without_a_trace_of_this_machine(exported: Path, root: Path) -> None:
    content = exported.read_bytes()
    assert [p.name for p in exported.parent.iterdir()] == ["model.onnx"]
    for trace in (str(root).encode(), b"site-packages", b".py", b"stack_trace", torch.__version__.encode()):
        assert trace not in content
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


@pytest.mark.slow
def test_the_same_bytes_from_another_folder_and_process(exported: Path, root: Path, tmp_path: Path) -> None:
    code = (
        "from tests.export.nets import tiny; from tests.export.test_onnx import ROBUSTNESS;"
        "from autolora.export.write import *; import torch; torch.rand(7);"
        "model = tiny().to(memory_format=torch.channels_last);"
        "export_onnx(model, 'elsewhere.onnx', evidence(ROBUSTNESS, ['zero', 'één'], 'Apache-2.0', toward='branch'))"
    )
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "elsewhere.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.slow
def test_the_same_bytes_again(exported: Path, tmp_path: Path) -> None:
    export_onnx(tiny(), tmp_path / "n.onnx", evidence(ROBUSTNESS, ["zero", "één"], "Apache-2.0", toward="branch"))
    assert (tmp_path / "n.onnx").read_bytes() == exported.read_bytes()


def test_other_weights_are_other_bytes(exported: Path, tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.body.fc.bias[0] += 1e-3
    export_onnx(model, tmp_path / "m.onnx", evidence(ROBUSTNESS, ["zero", "één"], "Apache-2.0", toward="branch"))
    assert (tmp_path / "m.onnx").read_bytes() != exported.read_bytes()


def test_bytes_in_is_the_same_network(exported: Path, tmp_path: Path) -> None:
    export_onnx(tiny(), tmp_path / "bytes.onnx", pixels="uint8")
    session = open_session(tmp_path / "bytes.onnx")
    assert (session.get_inputs()[0].type, image_shape(session)) == ("tensor(uint8)", (8, 8, 3))
    raw = np.rint(images() * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    answered = session.run(None, {"image": raw})[0]
    assert np.abs(answered - logits(open_session(exported), images())).max() < 1e-5
    assert np.array_equal(answered, logits(session, images()))
    with pytest.raises(ValueError, match=r"pixels is 'float16'"):
        export_onnx(tiny(), tmp_path / "no.onnx", pixels="float16")


def test_the_older_exporter_writes_the_same_network(exported: Path) -> None:
    x = images()
    expected = torch_logits(tiny(), x)
    content = checked(traced(tiny(), (3, 8, 8)), tiny(), (3, 8, 8))
    assert np.abs(logits(open_session(content), x, 4) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("module", [Undecided, Bessel, TwoImages])
def test_what_the_older_exporter_would_make_a_constant_of_is_refused(
    module: type[nn.Module], capfd: pytest.CaptureFixture
) -> None:
    """A branch on the values would be the one that the example took; nothing is printed about it."""
    with pytest.raises(ExportError):
        checked(traced(module().eval(), (3, 8, 8)), module().eval(), (3, 8, 8))
    assert "".join(capfd.readouterr()) == ""


# --- the evidence -----------------------------------------------------------------------------------------------------


def test_the_file_carries_its_evidence(exported: Path) -> None:
    said = notes_in(exported)
    assert json.loads(said["classes"]) == ["zero", "één"]
    assert said["threat"] == "linf:8/255"
    assert json.loads(said["robust_accuracy"]) == {"value": 0.5, "n": 200, "ci95": [0.4314, 0.5686]}
    clean = json.loads(said["clean_accuracy"])
    assert clean["n"] == 200
    assert clean["ci95"] == pytest.approx([0.8506, 0.9343], abs=1e-4)  # Wilson, 180 of 200
    assert json.loads(said["input"])["range"] == [0, 1]
    assert (said["weights_sha256"], said["data_sha256"], said["attack"]) == ("e" * 64, "d" * 64, "standard")
    assert (said["alpha"], said["toward"], said["license"]) == ("0.0", "branch", "Apache-2.0")
    assert not [key for key in said if "git" in key or "revision" in key]


def test_show_prints_it(exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["export", "--show", str(exported)])
    main()
    told = json.loads(capsys.readouterr().out)
    assert told["robust_accuracy"]["value"] == 0.5
    assert told["image"] == "tensor(float) ['batch', 3, 8, 8]"


# --- what is refused --------------------------------------------------------------------------------------------------


def test_training_mode_is_refused(tmp_path: Path) -> None:
    for part in ("", "body.block.1"):
        model = tiny()
        model.get_submodule(part).training = True
        with pytest.raises(ExportError, match=r"training mode.*eval"):
            export_onnx(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Undecided(), "Undecided has no ONNX form: .*data-dependent"),
        (Bessel(), "Bessel has no ONNX form: .*bessel_j0"),
        (Fickle(), "Fickle: .*another network.*constant"),
        (TwoImages(), "TwoImages exports for one batch size only"),
    ],
)
def test_a_module_without_an_onnx_form(module: nn.Module, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the previous file")
    with pytest.raises(ExportError, match=reason) as caught:
        export_onnx(module.eval(), path, image_size=8)
    assert "\n" not in str(caught.value)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m.onnx", b"the previous file")]


def test_a_module_that_does_not_know_its_images(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="pass image_size"):
        export_onnx(nn.Flatten().eval(), tmp_path / "m.onnx")


def test_a_network_too_large_for_one_file(tmp_path: Path) -> None:
    model = nn.Linear(2**15, 2**14 + 1, bias=False, device="meta").eval()
    with pytest.raises(ExportError, match=r"Linear has 2\.1 GB of weights: one ONNX file holds 2\.1 GB"):
        export_onnx(model, tmp_path / "m.onnx", image_size=8)
    assert not list(tmp_path.iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Every write beyond fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the previous file")
    with files_of_at_most(1000), pytest.raises(OSError, match=r"model\.onnx") as caught:
        write_bytes(path, b"x" * 5000)
    assert caught.value.filename == str(path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("model.onnx", b"the previous file")]


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "empty":
        return b""
    if how == "text":
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    weight = tiny().body.fc.weight.detach().numpy().tobytes()[:16]
    assert weight in content
    return content.replace(weight, weight[:7] + bytes([weight[7] ^ 0x10]) + weight[8:])


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "one bit"])
def test_a_damaged_file_is_named(exported: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(damaged(exported.read_bytes(), how))
    with pytest.raises(BadModel, match=r"broken\.onnx"):
        show(path)
    monkeypatch.setattr(sys, "argv", ["export", "--show", str(path)])
    with pytest.raises(SystemExit, match=r"^export: .*broken\.onnx.*damaged"):
        main()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BadModel, match=r"nowhere\.onnx: no such file"):
        open_session("nowhere.onnx")


def test_an_absent_device_is_named(exported: Path) -> None:
    with pytest.raises(ValueError, match="expected one of cpu, cuda"):
        open_session(exported, "tpu")


def test_a_gpu_computes_in_float32(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is on unless it is switched off; which providers a session asks for, without a GPU to have it."""
    asked = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda m, o, providers: asked.append(providers) or real(m, o))
    open_session(exported, "cuda")
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": 0}), "CPUExecutionProvider"]]
    monkeypatch.undo()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ValueError, match="install onnxruntime-gpu"):
            open_session(exported, "cuda")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (images() * 255, "divide grey levels by 255"),
        (images() - 0.5, "expected \\[0, 1\\]"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "NaN"),
        (images().transpose(0, 2, 3, 1), "shape \\[9, 8, 8, 3\\]: expected float32 \\[n,3,8,8\\]"),
        (images()[0], "shape"),
        (images()[:0], "n at least 1"),
        (images().astype(np.float64), "dtype float64"),
    ],
)
def test_images_that_break_the_contract(bad: np.ndarray, reason: str) -> None:
    with pytest.raises(BadImages, match=reason):
        check_images(bad, (3, 8, 8), "float32")
    check_images(images(), (3, 8, 8), "float32")


def test_what_is_no_byte() -> None:
    assert as_bytes(np.array([0.0, 255.0], np.float32)).tolist() == [0, 255]
    for bad in (256.0, -1.0, 0.5, np.nan, np.inf):
        with pytest.raises(BadImages, match="no bytes"):
            as_bytes(np.array([0.0, bad], np.float32))


def test_a_session_beside_torch_waits_asleep(exported: bytes) -> None:
    """Two sets of threads that spin take the cores from each other: Square took 1.3 to 4 times as long."""
    for beside_torch, spins in ((True, "0"), (False, "1")):
        options = open_session(exported, threads=2, beside_torch=beside_torch).get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == spins
        assert options.enable_mem_pattern is not beside_torch


def test_bytes_are_the_nearest_levels():
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 3])
    same = helper.make_tensor_value_info("same", TensorProto.UINT8, ["n", 2, 2, 3])
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["same"])], "same", [image], [same])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = open_session(model.SerializeToString())
    levels = np.array([0, 0.4, 0.6, 99.6, 100.4, 254.4, 254.6, 255, 3, 4, 5, 6], np.float32)
    asked = as_input(session, (levels / 255).reshape(1, 3, 2, 2))
    assert asked.transpose(0, 3, 1, 2).flatten().tolist() == [0, 0, 1, 100, 100, 254, 255, 255, 3, 4, 5, 6]


def test_a_file_that_takes_one_number_of_images_is_refused():
    """Four, as many as it is compared on: a Reshape that was traced with them."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 2, 2])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [4, 12])
    shape = numpy_helper.from_array(np.array([4, 12], np.int64), "shape")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["image", "shape"], ["logits"])], "r", [image], [out], [shape]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    with pytest.raises(ExportError, match="the exported file fails at batch 1"):
        checked(model, nn.Flatten().eval(), (3, 2, 2))
