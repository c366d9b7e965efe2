"""The commands of docs/attack.md, run as they are written, on small files under the names that the page uses."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torchvision.io import write_png

from autolora.command.main import main
from tests.attacks import colours
from tests.house.pages import commands

NOT_RUN = {
    "timm:resnet50.a1_in1k": "fetches weights",
    "hf:timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k": "fetches weights",
    "models:/robust-digits@champion": "asks a registry",
    "benchmarks.onnx_copies": "minutes, and nothing of a user's",
    "benchmarks.attack_onnx": "the same",
}
COMMANDS = [text.removeprefix("uv run ") for text in commands(Path("docs/attack.md")) if text.startswith("uv run ")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    colours.write(folder / "model.onnx")
    model = onnx.load(colours.write(folder / "keras.onnx", "nhwc"))
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["shares"]))
    model.graph.output[0].name = "shares"
    onnx.save(model, str(folder / "keras.onnx"))
    model = onnx.load(folder / "model.onnx")
    onnx.helper.set_model_props(model, {"classes": '["red", "green", "blue"]'})  # as files of ours carry them
    onnx.save(model, str(folder / "model.onnx"))
    for i, (x, y) in enumerate(zip(*colours.images())):
        (place := folder / "images" / colours.NAMES[y]).mkdir(parents=True, exist_ok=True)
        write_png(torch.from_numpy(x), str(place / f"{i}.png"))
    (folder / "own_network.py").write_text(OWN)
    return folder


OWN = """import torch
class Colours(torch.nn.Module):
    def forward(self, x):
        return 25.5 * x.mean((2, 3))[:, [2, 1, 0]]
"""


def test_the_page_names_commands() -> None:
    assert len(COMMANDS) >= 10
    assert sum(any(word in text for text in COMMANDS) for word in NOT_RUN) == len(NOT_RUN)


@contextmanager
def alone(*_: object) -> Iterator[bool]:
    yield True


@pytest.mark.slow
def test_its_commands_run(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setattr("autolora.command.attack.shared_out", alone)  # a fork must come before the first gradient
    monkeypatch.syspath_prepend(str(desk))
    network = __import__("own_network").Colours().eval()
    shape = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(network, (torch.rand(2, 3, 8, 8),), dynamic_shapes=shape), "model.pt2")
    for text in COMMANDS:
        words = shlex.split(text)
        if any(word in NOT_RUN for word in words):
            continue
        with pytest.raises(SystemExit) as ended:
            main(words[1:])
        assert not ended.value.code, text
    flags = np.load("attacked/robust_flags.npy")
    chosen = {"keras": np.load("keras/robust_flags.npy"), "archive": np.load("archive/robust_flags.npy")}
    assert len(flags) == 12
    assert all(found["robust"].mean() == flags["robust"].mean() for found in chosen.values())
