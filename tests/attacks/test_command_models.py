"""`autolora attack` on models that come from elsewhere: timm and the hub over a local server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import save
from torch import Tensor

from autolora.command.main import main
from autolora.command.models import Asked, target
from tests.attacks import colours
from tests.backbones.servers import Files, HubHandler, serving

SIZE = 32


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3).eval()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module) -> Iterator[Files]:
    """What the hub would give, under the names that timm asks for."""
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {
        "input_size": [3, SIZE, SIZE], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "num_classes": 3}}  # fmt: skip
    files = {
        "lab/net/config.json": json.dumps(config).encode(),
        "lab/net/model.safetensors": save(network.state_dict()),
    }
    with serving(files, HubHandler) as (address, record):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)  # it read HF_ENDPOINT when it was imported
        pattern = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", pattern)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        yield record


def expected(network: torch.nn.Module, x: Tensor, mean: list[float], std: list[float]) -> Tensor:
    row = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return network((x - next(row)) / next(row))


def test_the_hub_says_what_the_network_is(hub: Files, network: torch.nn.Module) -> None:
    """Its weights, its mean and deviation, its size; from the cache the second time."""
    x = torch.rand(2, 3, SIZE, SIZE)
    made = target(Asked("hf:lab/net"))
    assert (made.name, made.kind, made.shape) == ("lab-net", "hf", (3, SIZE, SIZE))
    torch.testing.assert_close(made.network(x), expected(network, x, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    told = target(Asked("hf:lab/net", normalise=((0.0,), (1.0,)), size=64))
    assert told.shape == (3, 64, 64)
    torch.testing.assert_close(told.network(x), network(x))
    assert sum(path.endswith("model.safetensors") for path in hub.sent) == 1
    assert told.sha256 == made.sha256


def test_a_timm_name_has_its_published_weights(hub: Files) -> None:
    torch.manual_seed(1)
    whole = timm.create_model("test_resnet").eval()  # 1000 classes, as published
    config = whole.pretrained_cfg
    hub.files["timm/test_resnet.r160_in1k/model.safetensors"] = save(whole.state_dict())
    made = target(Asked("timm:test_resnet"))
    assert made.shape == tuple(config["input_size"])
    x = torch.rand(1, *config["input_size"])
    torch.testing.assert_close(made.network(x), expected(whole, x, config["mean"], config["std"]))


def test_weights_of_ones_own_ask_nobody(hub: Files, tmp_path: Path) -> None:
    torch.manual_seed(2)
    whole = timm.create_model("test_resnet").eval()
    torch.save({"model": whole.state_dict()}, tmp_path / "own.pt")
    made = target(Asked("timm:test_resnet", weights=str(tmp_path / "own.pt"), normalise=((0.0,), (1.0,))))
    x = torch.rand(1, 3, 160, 160)
    torch.testing.assert_close(made.network(x), whole(x))
    assert hub.sent == []
    torch.save({"model": dict(list(whole.state_dict().items())[:-2])}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match="it does not fit: no weights for"):
        target(Asked("timm:test_resnet", weights=str(tmp_path / "half.pt")))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:lab/none", "timm does not give it"),
        ("timm:test_resnet", "--weights FILE takes them from elsewhere"),
        ("timm:resnt18", "Unknown model (resnt18)"),
        ("timm:convnext_atto_rms", "No pretrained weights exist for convnext_atto_rms"),
    ],
)
def test_random_weights_are_not_attacked(
    hub: Files, tmp_path: Path, capfd: pytest.CaptureFixture, name: str, says: str
) -> None:
    """What has no weights is said in one line, and nothing is written."""
    told = ["--data", str(tmp_path), "--eps", "8/255", "--processes", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["attack", name, *told])
    said = capfd.readouterr().err.strip()
    assert (ended.value.code, len(said.splitlines())) == (2, 1), said
    assert said.startswith(f"attack: --model is {name!r}")
    assert says in said
    assert not (tmp_path / "out").exists()


# --- a file and its weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_by_nodes", [False, True])
def test_weights_beside_a_file_are_part_of_it(tmp_path: Path, *, held_by_nodes: bool) -> None:
    """The newer exporter writes them so: another file of weights is another model. Constant nodes may hold some."""
    model = onnx.load(colours.write(tmp_path / "m.onnx"))
    for tensor in model.graph.initializer:
        tensor.raw_data = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
    if held_by_nodes:
        for tensor in model.graph.initializer:
            model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        del model.graph.initializer[:]
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0, "convert_attribute": True}
    onnx.save(model, str(tmp_path / "m.onnx"), **options)
    first = target(Asked(str(tmp_path / "m.onnx")))
    x = torch.from_numpy(colours.images()[0][:2]).float() / 255
    assert first.network(x).argmax(1).tolist() == [0, 1]
    held, scale = (tmp_path / "m.data").read_bytes(), 0.1 * 255.0
    eye = (scale * np.eye(3, dtype=np.float32)).astype(np.float32)
    assert eye.tobytes() in held
    held = held.replace(eye.tobytes(), np.ascontiguousarray(eye[::-1]).tobytes())
    (tmp_path / "m.data").write_bytes(held)
    second = target(Asked(str(tmp_path / "m.onnx")))
    assert second.sha256 != first.sha256
    assert second.network(x).argmax(1).tolist() == [2, 1]
    (tmp_path / "m.data").unlink()
    with pytest.raises(ValueError, match="is no ONNX file, or it is damaged"):
        target(Asked(str(tmp_path / "m.onnx")))


# --- archives of torch.export -----------------------------------------------------------------------------------------


class Payload:
    """What a stranger may put where weights are expected."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return open, (str(self.mark), "w")


def hostile(folder: Path, mark: Path) -> Path:
    """An archive whose settings say that a weight is a pickle."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 2, 2),)), folder / "good.pt2")
    torch.save(Payload(mark), pickled := io.BytesIO())
    with ZipFile(folder / "good.pt2") as good, ZipFile(folder / "bad.pt2", "w") as bad:
        contents = {name: good.read(name) for name in good.namelist()}
        settings = next(name for name in contents if name.endswith("_weights_config.json"))
        said = json.loads(contents[settings])
        weight = next(iter(said["config"].values()))
        weight["use_pickle"] = True
        contents[settings] = json.dumps(said).encode()
        contents[next(name for name in contents if name.endswith(weight["path_name"]))] = pickled.getvalue()
        for name, content in contents.items():
            bad.writestr(name.replace("good/", "bad/"), content)
    return folder / "bad.pt2"


def test_an_archive_is_not_opened_unless_it_is_trusted(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """torch.export.load runs what a pickle in it says."""
    mark = tmp_path / "ran"
    archive = str(hostile(tmp_path, mark))
    told = ["--data", str(tmp_path), "--eps", "8/255", "--processes", "1"]
    with pytest.raises(SystemExit) as ended:
        main(["attack", archive, *told])
    said = capfd.readouterr().err.strip()
    assert (ended.value.code, len(said.splitlines())) == (2, 1), said
    assert "can run code on this machine: --trust, if you know who made it, or give an ONNX file" in said
    assert not mark.exists()
    with pytest.raises(ValueError, match="is no archive"):
        target(Asked(archive, trust=True))
    assert mark.exists()  # so it would have run


# --- MLflow -----------------------------------------------------------------------------------------------------------


def test_a_registry_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow would make an empty one here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="names no server, and here lies no mlflow"):
        target(Asked("models:/net@champion"))
    assert list(tmp_path.iterdir()) == []
