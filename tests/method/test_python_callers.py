"""What somebody gets wrong who calls the library from Python with a network of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import autolora
from autolora.attacks.autoattack import black_box
from autolora.backbones.classifier import as_classifier, load_classifier, save_classifier
from autolora.export.write import show
from autolora.training.loop import Tuned
from autolora.training.objectives import METHODS, Losses, Method

T = autolora.Threat("linf", "8/255")


class Small(nn.Module):
    """Two convolutions and a head; `tied`: the second one is the first once more."""

    def __init__(self, classes: int = 3, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        if tied:
            self.b = self.a
        self.out = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.b(self.a(self.stem(x).relu()).relu()).mean((2, 3)))


class Disordered(Small):
    """A layer that gives no logits is registered last."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.mid(self.b(self.a(self.stem(x).relu()).relu()).mean((2, 3))))


class Uncalled(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.a(self.stem(x)).mean((2, 3)), self.out.weight)


def images(size: int = 8, n: int = 24) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    y = np.arange(n) % 3
    x = draw.integers(0, 100, (n, 3, size, size))
    x[np.arange(n), y] += 100
    return x.astype(np.uint8), y


def tuned(model: nn.Module, size: int = 8, **more: object) -> Tuned:
    data = images(size)
    settings = {"epochs": 1, "batch_size": 12, "progress": False} | more
    return autolora.finetune(model, data, data, T, **settings)  # type: ignore[arg-type]


def test_files_say_the_size_of_the_images_they_were_made_on(tmp_path) -> None:
    """A backbone is loaded for 32 pixels unless another size is named, and tuned on 16."""
    backbone = autolora.load_backbone("resnet10t", classes=3, options={"channels": [4, 8, 8, 8], "stem_width": 4})
    robust = autolora.merge(tuned(backbone, 16))
    assert robust.spec.image_size == 16
    assert backbone.spec.image_size == 32
    autolora.export_onnx(robust, tmp_path / "m.onnx")
    assert "3, 16, 16" in str(show(tmp_path / "m.onnx")["image"])
    save_classifier(robust, tmp_path / "m.safetensors")
    assert load_classifier(tmp_path / "m.safetensors").spec.image_size == 16


class Viewing(Small):
    """As an ordinary LeNet: its features become rows by a view, which knows one order in memory alone."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.out = scale, nn.Linear(8 * 64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * self.out(self.a(self.stem(x).relu()).view(len(x), -1))


def test_a_network_that_views_its_features_as_rows_is_trained() -> None:
    assert len(tuned(Viewing()).history) == 1


def losses(model: nn.Module, checkpoints: object = None, **more: object) -> list[float]:
    return [record["loss"] for record in tuned(model, checkpoints=checkpoints, **more).history]


def weighted(beta: float) -> Callable[..., Losses]:
    """A loss with a weight that only its closure knows."""

    def objective(*given: Any) -> Losses:
        found = METHODS["vanilla"].objective(*given)
        return found._replace(total=beta * found.total)

    return objective


@pytest.mark.parametrize("what", ["an attribute", "a closure", "a rate", "a partial function"])
def test_progress_is_of_what_was_asked_for(tmp_path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Whatever differs in somebody's own network or loss: another run's result is never given back."""
    found, alone = [], []
    for value in (0.01, 0.1):
        model, more = Viewing(value if what == "an attribute" else 1.0), {}
        if what != "an attribute":
            rate = value if what == "a rate" else 0.01
            objective = weighted(1.0 if what == "a rate" else value)
            objective = partial(objective) if what == "a partial function" else objective
            monkeypatch.setitem(METHODS, "own", Method(objective, rate))
            more = {"method": "own", "reference": "paper"}
        found.append(losses(model, tmp_path, epochs=2, **more))
        alone.append(losses(model, epochs=2, **more))
    assert found == alone
    assert found[0] != found[1]


def test_a_head_that_gives_no_logits_is_named() -> None:
    with pytest.raises(ValueError, match="the layer registered last, 'mid', gives 8 values and the network 3 logits"):
        tuned(Disordered())


@pytest.mark.parametrize("way", [{"reference": "paper"}, {"rate": 0.01, "eps_schedule": "constant"}])
def test_a_head_that_is_not_called_as_a_layer_is_named_with_a_way_out(way: dict[str, Any]) -> None:
    for half in ({}, {"eps_schedule": "constant"}, {"rate": 0.01}):
        with pytest.raises(ValueError, match=r"'out', is not called as a layer: .* there is reference=.paper"):
            tuned(Uncalled(), method="madry", **half)
    assert tuned(Uncalled(), method="madry", **way).history


def test_numbers_of_numpy_are_numbers_and_progress_made_with_them_is_kept(tmp_path) -> None:
    said = {"epochs": np.int64(1), "rate": np.float64(0.01), "seed": np.int64(4), "batch_size": np.int64(12)}
    first = tuned(Small(), checkpoints=tmp_path, **said)
    trained: list[object] = []
    again = tuned(Small(), checkpoints=tmp_path, on_epoch=trained.append, **said)
    assert not trained
    assert again.history == first.history
    plain = tuned(Small(), epochs=1, rate=0.01, seed=4, batch_size=12)
    for ours, theirs in zip(plain.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_two_layers_share_are_saved_and_read(tmp_path) -> None:
    model = as_classifier(Small(tied=True), image_size=8)
    save_classifier(model, tmp_path / "m.safetensors")
    read = load_classifier(tmp_path / "m.safetensors", body=Small(tied=True))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(read(x), model.eval()(x))


def test_a_network_in_float64_is_a_classifier() -> None:
    model = as_classifier(Small().double(), image_size=8)
    assert model(torch.rand(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("threat", ["linf:8/255", 8 / 255, ("linf", "8/255")])
def test_a_threat_is_a_threat(threat: object) -> None:
    x, y = images()
    for attack in (autolora.autoattack, black_box):
        with pytest.raises(ValueError, match=r"expected autolora\.Threat"):
            attack(Small().eval(), x, y, threat)  # type: ignore[operator]


def test_what_was_tuned_is_merged_before_it_is_attacked() -> None:
    x, y = images()
    found = tuned(copy.deepcopy(Small()))
    with pytest.raises(ValueError, match="merge it first"):
        autolora.autoattack(found, x, y, T)  # type: ignore[arg-type]


def test_another_stem_is_another_network() -> None:
    """A max-pool has no weights, so that every one of the file's fits."""
    shipped = "models/pretrained/resnet10s-cifar10-linf8.safetensors"
    made = {"options": {"channels": [24, 48, 96, 192], "stem_width": 16}, "classes": 3}
    with pytest.raises(ValueError, match="was made with stem 'nopool': that is another network"):
        autolora.load_backbone("resnet10t", shipped, **made)  # type: ignore[arg-type]
    assert autolora.load_backbone("resnet10t", shipped, stem="nopool", **made).spec.stem == "nopool"  # type: ignore[arg-type]
