"""What the servers are given: a Triton repository judged by Triton's own schema, a KServe manifest, and the client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from PIL import Image

from autolora.export.write import export_onnx
from deploy import client, model_repository
from stages.dataset.decode import centre, decode
from tests.export import schemas
from tests.export.nets import tiny

CLASSES = ["cat", "dog, small", "Äpfel"]


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    return schemas.triton()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("deploy")
    for pixels in ("float32", "uint8"):
        export_onnx(tiny(), folder / f"{pixels}.onnx", {"classes": json.dumps(CLASSES)}, pixels=pixels)
    return {pixels: folder / f"{pixels}.onnx" for pixels in ("float32", "uint8")}


@pytest.mark.parametrize(
    ("pixels", "gpu", "type_", "dims", "kind"),
    [("float32", False, "TYPE_FP32", [3, 8, 8], "KIND_CPU"), ("uint8", True, "TYPE_UINT8", [8, 8, 3], "KIND_GPU")],
)
def test_the_repository(
    models: dict[str, Path],
    schema: ModuleType,
    tmp_path: Path,
    pixels: str,
    gpu: bool,
    type_: str,
    dims: list,
    kind: str,
) -> None:
    target = model_repository.write_repository(models[pixels], tmp_path, "robust", gpu=gpu)
    assert (target / "1" / "model.onnx").read_bytes() == models[pixels].read_bytes()
    assert (target / "labels.txt").read_text().splitlines() == CLASSES
    config = text_format.Parse((target / "config.pbtxt").read_text(), schema.ModelConfig())
    (image,), (logits,), (group,) = config.input, config.output, config.instance_group
    assert (image.name, schema.DataType.Name(image.data_type), list(image.dims)) == ("image", type_, dims)
    assert (logits.name, list(logits.dims), logits.label_filename) == ("logits", [10], "labels.txt")
    assert config.max_batch_size >= max(config.dynamic_batching.preferred_batch_size)
    assert type(group).Kind.Name(group.kind) == kind
    assert (config.name, config.backend) == (target.name, "onnxruntime")


def test_the_schema_would_have_seen_a_mistake(schema: ModuleType, models: dict[str, Path]) -> None:
    text = model_repository.config(models["float32"], "robust", gpu=False)
    for right, wrong in (("max_batch_size", "max_batchsize"), ("KIND_CPU", "KIND_TPU"), ("TYPE_FP32", "FP32")):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(text.replace(right, wrong), schema.ModelConfig())


def test_a_damaged_model_leaves_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    monkeypatch.setattr("sys.argv", ["model_repository", str(broken), str(tmp_path / "repository")])
    with pytest.raises(SystemExit, match=r"^model_repository: .*broken\.onnx"):
        model_repository.main()
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("gpu", [False, True])
def test_the_inference_service(gpu: bool) -> None:
    service = yaml.safe_load(model_repository.inference_service("s3://models/robust", "robust", gpu=gpu))
    model = service["spec"]["predictor"]["model"]
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert model["protocolVersion"] == "v2"
    assert model["modelFormat"] == {"name": "triton"}
    assert ("nvidia.com/gpu" in model["resources"]["limits"]) is gpu
    assert {"name": "NVIDIA_TF32_OVERRIDE", "value": "0"} in model["env"]
    committed = yaml.safe_load_all((Path(model_repository.__file__).parent / "kserve.yaml").read_text())
    assert {doc["kind"] for doc in committed} == {"InferenceService"}


@pytest.fixture(scope="module")
def inference_service() -> Any:
    return schemas.kserve()


@pytest.mark.parametrize("gpu", [False, True])
def test_the_inference_service_against_kserves_own_schema(inference_service: Any, gpu: bool) -> None:
    inference_service.validate(
        yaml.safe_load(model_repository.inference_service("s3://models/robust", "robust", gpu=gpu))
    )
    for document in yaml.safe_load_all((Path(model_repository.__file__).parent / "kserve.yaml").read_text()):
        inference_service.validate(document)


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("storageUri", "storageuri", "'storageuri' was unexpected"),
        ("{name: triton}", "triton", "is not of type 'object'"),
        ("predictor:", "predictors:", "'predictors' was unexpected"),
        ("name: NVIDIA_TF32_OVERRIDE", "key: NVIDIA_TF32_OVERRIDE", "'key' was unexpected"),
        ('limits: {cpu: "1"', "limits: {cpu: [1]", "is not valid under any"),
        ("name: robust", "label: {a: b}", "'label' was unexpected"),
    ],
)
def test_kserves_schema_would_have_seen_a_mistake(inference_service: Any, right: str, wrong: str, said: str) -> None:
    text = model_repository.inference_service("s3://models/robust", "robust", gpu=False)
    assert right in text
    errors = [error.message for error in inference_service.iter_errors(yaml.safe_load(text.replace(right, wrong)))]
    assert any(said in error for error in errors), errors


# --- the client -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stub() -> Iterator[tuple[str, list[Any]]]:
    """A server that keeps what it was asked and always answers with class 1."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self, body: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_GET(self) -> None:
            self.reply({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            if self.path == "/invocations":
                return self.reply({"predictions": {"logits": [[0.0, 9.0]] * len(body["inputs"]["image"])}})
            rows = body["inputs"][0]["shape"][0]
            self.reply({"outputs": [{"name": "logits", "shape": [rows, 2], "data": [0.0, 9.0] * rows}]})

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def odd_images() -> dict[str, Image.Image]:
    x, y = np.meshgrid(np.arange(40), np.arange(40))
    ramp = np.stack([6 * x, 6 * y, 3 * (x + y)], 2).astype(np.uint8)
    clear = np.dstack([ramp, np.where(x < 20, 0, 255).astype(np.uint8)])
    return {
        "plain": Image.fromarray(ramp),
        "wide": Image.fromarray(np.concatenate([ramp, ramp], 1)),
        "transparent": Image.fromarray(clear),
        "16 bits": Image.fromarray((1600 * x).astype(np.uint16)),
        "grey": Image.fromarray(ramp[..., 0]),
        "palette": Image.fromarray(ramp).quantize(16),
    }


@pytest.mark.parametrize("stored", [0, 24])
@pytest.mark.parametrize("name", odd_images())
def test_the_client_reads_images_as_prepare_does(tmp_path: Path, name: str, stored: int) -> None:
    """But for the last levels: one scales with Pillow, the other with torchvision."""
    odd_images()[name].save(tmp_path / "image.png")
    whole, _ = decode((tmp_path / "image.png").read_bytes(), stored or 16)
    expected = centre(whole, 16).transpose(1, 2, 0).astype(int)
    found = client.read(str(tmp_path / "image.png"), 16, as_bytes=True, stored=stored).astype(int)
    assert np.abs(found - expected).max() <= 4


@pytest.mark.parametrize("more", [["--size", "8"], ["--triton", "robust"]])
def test_the_client(stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, more: list[str]) -> None:
    url, asked = stub
    red = tmp_path / "red.png"
    Image.new("RGB", (20, 30), (255, 0, 0)).save(red)
    monkeypatch.setattr("sys.argv", ["client", url, str(red), str(red), *more])
    client.main()
    assert capsys.readouterr().out.splitlines() == [f"{red}: class 1 (1.00)"] * 2
    ((path, body),) = asked
    if path == "/invocations":
        image = np.array(body["inputs"]["image"])
        assert (image.shape, image[:, 0].min(), image[:, 1:].max()) == ((2, 3, 8, 8), 1.0, 0.0)
    else:
        (image,) = body["inputs"]
        assert (path, image["datatype"], image["shape"]) == ("/v2/models/robust/infer", "UINT8", [2, 8, 8, 3])
        assert image["data"][:6] == [255, 0, 0, 255, 0, 0]


def test_the_body_is_what_would_be_sent(stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    url, asked = stub
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    for more in ([], ["--body"]):
        monkeypatch.setattr("sys.argv", ["client", url, str(tmp_path / "red.png"), "--size", "8", *more])
        client.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == asked[0][1]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            json.dumps({"message": "Failed to predict data '[0.1 0.2]'. \nError: pixels from 0 to 9"}),
            "pixels from 0 to 9",
        ),
        (json.dumps({"error": "unexpected shape"}), "unexpected shape"),
        ("<html>Bad gateway", "<html>Bad gateway"),
        ("[1]", "[1]"),
    ],
)
def test_the_reason_out_of_a_reply(reply: str, said: str) -> None:
    assert client.reason(reply) == said


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    for more in (["--size", "8"], ["--triton", "robust"]):
        monkeypatch.setattr("sys.argv", ["client", "http://127.0.0.1:9", str(tmp_path / "black.png"), *more])
        with pytest.raises(SystemExit, match=r"^http://127\.0\.0\.1:9/.* does not answer"):
            client.main()
