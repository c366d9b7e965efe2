"""What a newcomer gives to the attack by mistake: each is one line, with its cure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from autolora import Threat, autoattack
from autolora.attacks.autoattack import black_box
from autolora.attacks.eps_curve import eps_curve
from autolora.attacks.versions import Budget
from autolora.export.runtime import open_session
from autolora.export.write import export_onnx
from tests.attacks.nets import images, smooth

THREAT = Threat("linf", "8/255")
N = 12


def attacked(how, net, x, y):
    if how is eps_curve:
        return eps_curve(net, x, y, THREAT)
    if how is black_box:
        return black_box(net, x, y, THREAT, queries=3, show=False)
    return autoattack(net, x, y, THREAT, version="fast", show=False)


def refused(how, net, x, y) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        attacked(how, net, x, y)
    said = str(caught.value)
    assert "\n" not in said
    return said


EACH = pytest.mark.parametrize("how", [autoattack, black_box, eps_curve])


@EACH
def test_one_hot_labels(how) -> None:
    y = torch.eye(4)[torch.arange(N) % 4]
    assert "y is of shape (12, 4): one-hot labels: give class numbers, y.argmax(1)" in refused(
        how, smooth(4), images(N), y
    )


@EACH
def test_a_column_of_labels(how) -> None:
    assert "y.squeeze(1)" in refused(how, smooth(4), images(N), torch.zeros(N, 1))


@EACH
def test_channels_last(how) -> None:
    x = images(N).permute(0, 2, 3, 1)
    assert "channels come first: give x.permute(0, 3, 1, 2)" in refused(how, smooth(4), x, torch.zeros(N))


@EACH
def test_one_image_without_a_batch(how) -> None:
    assert "give x[None]" in refused(how, smooth(4), images(1)[0], torch.zeros(1))


@EACH
def test_a_data_loader(how) -> None:
    loader = DataLoader(TensorDataset(images(N), torch.zeros(N)))
    assert "x is a DataLoader: give tensors" in refused(how, smooth(4), loader, torch.zeros(N))


def test_a_data_set_and_the_cure() -> None:
    net, x = smooth(4), images(N)
    data = TensorDataset(x, net(x).argmax(1))
    said = refused(autoattack, net, data, torch.zeros(N))
    assert (
        said
        == "x is a TensorDataset: give tensors: x, y = (torch.cat(parts) for parts in zip(*DataLoader(dataset, 256)))"
    )
    a, b = (torch.cat(parts) for parts in zip(*DataLoader(data, 256)))
    assert attacked(black_box, net, a, b).clean_accuracy == 1


@EACH
def test_floats_up_to_255(how) -> None:
    net, x = smooth(4), images(N)
    assert "values from 0 to 255: divide them by 255" in refused(how, net, x * 255, net(x).argmax(1))


@EACH
def test_normalised_images(how) -> None:
    net, x = smooth(4), images(N)
    assert "give them as they are, in [0,1]" in refused(how, net, (x - 0.5) / 0.25, net(x).argmax(1))


@EACH
def test_train_mode(how) -> None:
    net = nn.Sequential(smooth(4), nn.Dropout(0.5)).train()
    assert "call .eval() first" in refused(how, net, images(N), torch.zeros(N))


@EACH
def test_classes_instead_of_logits(how) -> None:
    net = smooth(4)
    said = refused(how, lambda x: net(x).argmax(1), images(N), net(images(N)).argmax(1))
    assert "it answers int64 of shape (1,): expected logits, floats [n,classes]" in said


@EACH
def test_one_number_for_two_classes(how) -> None:
    said = refused(how, nn.Sequential(nn.Flatten(), nn.Linear(108, 1)).eval(), images(N), torch.zeros(N))
    assert "torch.cat([-z, z], 1)" in said


@EACH
def test_a_function_on_arrays(how) -> None:
    weights = np.random.default_rng(0).normal(size=(108, 4)).astype(np.float32)

    def answers(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32).reshape(len(x), -1) @ weights

    assert "torch.from_numpy(f(x.cpu().numpy()))" in refused(how, answers, images(N), torch.zeros(N))
    assert "torch.from_numpy(f(x.cpu().numpy()))" in refused(
        how, lambda x: x.numpy().reshape(len(x), -1) @ weights, images(N), torch.zeros(N)
    )
    assert "it answers with a numpy array" in refused(
        how, lambda x: np.asarray(x.numpy().reshape(len(x), -1) @ weights), images(N), torch.zeros(N)
    )


@EACH
def test_a_network_that_works_in_place(how) -> None:
    """It would change the caller's images, and those that the attack compares with."""

    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return smooth(4)(x.mul_(0.5))

    x = images(N)
    before = x.clone()
    assert "its forward changes its input in place" in refused(how, InPlace().eval(), x, torch.arange(N) % 4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("pixels", ["float32", "uint8"])
def test_a_session_on_a_file_of_ours(tmp_path: Path, pixels: str) -> None:
    """Of floats, or of bytes as they come from a camera."""
    net, x = smooth(4), images(N)
    export_onnx(net, tmp_path / "m.onnx", pixels=pixels, image_size=x.shape[2])
    session = open_session(tmp_path / "m.onnx", threads=1, beside_torch=True)
    assert attacked(black_box, session, x, net((x * 255).round() / 255).argmax(1)).clean_accuracy == 1


def test_the_cure_for_a_function_on_arrays_works() -> None:
    weights = np.random.default_rng(0).normal(size=(108, 4)).astype(np.float32)

    def answers(x: Tensor) -> Tensor:
        return torch.from_numpy(x.cpu().numpy().reshape(len(x), -1) @ weights)

    x = images(N)
    assert attacked(black_box, answers, x, answers(x).argmax(1)).clean_accuracy == 1
    assert "attack its scores alone with black_box" in refused(autoattack, answers, x, answers(x).argmax(1))


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode])
def test_no_gradient(how) -> None:
    net, x = smooth(4), images(N)
    assert "the network's answer has no gradient: take torch.no_grad()" in refused(
        autoattack, how()(lambda p: net(p)), x, net(x).argmax(1)
    )


def test_a_network_that_answers_one_class_only() -> None:
    net = smooth(4)
    net[3].bias.data += torch.tensor([100.0, 0, 0, 0])
    report = attacked(black_box, net, images(N), torch.arange(N) % 4)
    assert any("the network answers class 0 for every image" in warning for warning in report.warnings)
    fine = attacked(black_box, net, images(N), torch.zeros(N))  # it may, where there is one class only
    assert not any("for every image" in warning for warning in fine.warnings)


def test_a_report_is_ten_lines() -> None:
    net, x = smooth(4), images(N)
    report = autoattack(net, x, net(x).argmax(1), THREAT, budget=Budget(queries=5), show=False)
    lines = repr(report).splitlines()
    assert str(report) == repr(report)
    assert len(lines) <= 11
    assert max(map(len, lines)) < 160
    for part in ("standard at linf:8/255", "95 %:", "apgd-ce", "fab-t", "warn", "too few images", "12"):
        assert part in repr(report)
        assert part in report._repr_html_()
    assert "tensor" not in repr(report)


def test_a_report_in_a_notebook_is_escaped() -> None:
    net, x = smooth(4), images(N)
    report = attacked(black_box, net, x, net(x).argmax(1))
    report.deviation = "<script>"
    assert "<script>" not in report._repr_html_()
