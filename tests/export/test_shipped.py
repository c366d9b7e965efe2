"""What is measured on the file: parity that sees another network, replay, Square and the torch copy."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from autolora.attacks.onnx_file import STEPS, parity, replay, square, white_box
from autolora.data.images import TestImages
from autolora.export.notes import notes_in
from autolora.export.operators.quantised import rounded
from autolora.export.quantise import finished, fp16, int8, is_transformer, known_to_break
from autolora.export.runtime import logits, open_session
from autolora.export.torch_copy import TorchCopy
from autolora.export.write import export_onnx
from autolora.threat import Threat
from tests.export.nets import tiny

LINF = Threat("linf", "8/255")


def images(n: int = 40) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, 3, 8, 8)).astype(np.float32) / 255


def labels(path: Path, n: int = 40) -> np.ndarray:
    return logits(open_session(path), images(n)).argmax(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "model.onnx"
    export_onnx(tiny(), path, {"threat": "linf:8/255"})
    return path


def test_parity_of_the_same_network(exported: Path) -> None:
    answer = partial(logits, open_session(exported))
    found = parity(tiny(), answer, {"clean": images(), "adversarial": images()[::-1].copy()})
    assert [row["batch"] for row in found["batches"]] == [1, 3, 7, 40]
    assert found["max_difference"] < found["noise"]
    assert found["label_flips"] == found["label_flips_beyond_noise"] == 0


def test_parity_sees_another_network(exported: Path) -> None:
    other = tiny()
    with torch.no_grad():
        other.body.fc.bias[0] += 5.0
    found = parity(other, partial(logits, open_session(exported)), {"clean": images()})
    assert found["max_difference"] == pytest.approx(5.0, rel=0.05)
    assert found["max_difference"] > found["noise"]
    assert found["label_flips_beyond_noise"] > 0


def test_parity_forgives_a_flip_within_the_noise() -> None:
    """Two logits closer to each other than rounding may fall either way: counted, not held against the file."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[:, 0] = 1.0
        model[1].weight[1, 0] += 1e-6
    answer = lambda x, batch: np.repeat(x[:, 0, 0, :1], 2, 1)  # noqa: E731  both logits equal: label 0
    found = parity(model, answer, {"clean": images()})
    assert found["label_flips"] > 0
    assert found["label_flips_beyond_noise"] == 0


def test_replay_counts_what_stands() -> None:
    """A file that answers NaN is wrong, though argmax makes class 0 of it; and the last image was never right."""
    table = np.array([[1, 0], [0, 1], [np.nan, np.nan]], np.float32)
    answer = lambda x: table[x[:, 0].astype(int)]  # noqa: E731  the first pixel is the class
    clean, adversarial = np.array([[0], [1], [1], [0], [0], [1]]), np.array([[0], [0], [1], [0], [2], [0]])
    seen = replay(answer, clean, adversarial, np.array([0, 1, 1, 1, 0, 0]))
    assert seen.clean.tolist() == [True, True, True, False, True, False]
    assert seen.robust.tolist() == [True, False, True, False, False, False]


# --- Square -----------------------------------------------------------------------------------------------------------


def brightness(threshold: float):
    """Two classes by mean brightness: an attack of radius eps breaks exactly the images within eps of the threshold."""

    def answer(x: np.ndarray) -> np.ndarray:
        mean = x.mean((1, 2, 3))
        return np.stack([threshold - mean, mean - threshold], 1).astype(np.float32)

    return answer


def grey(levels: list[float]) -> np.ndarray:
    return np.stack([np.full((3, 8, 8), level, np.float32) for level in levels])


def test_square_breaks_what_can_be_broken_and_nothing_else() -> None:
    x = grey([0.3, 0.45, 0.49, 0.51, 0.55, 0.7])
    y = (x.mean((1, 2, 3)) > 0.5).astype(np.int64)
    stands = square(brightness(0.5), TestImages.of(x, y), Threat("linf", 0.1), seed=0, queries=400)
    assert stands.tolist() == [True, False, False, False, False, True]


def test_square_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    x = grey([0.3, 0.45, 0.7])
    y = (x.mean((1, 2, 3)) > 0.5).astype(np.int64)
    shown, how = TestImages.of(x, y), {"seed": 0, "queries": 100, "progress": tmp_path}
    run = partial(square, images=shown, threat=Threat("linf", 0.1), **how)
    first = run(brightness(0.5))
    again = run(lambda _: pytest.fail("every image of these was finished before"))
    assert first.tolist() == again.tolist() == [True, False, True]


def test_progress_of_square_ends_at_what_was_announced() -> None:
    done: list[int] = []
    sure = lambda x: np.tile(np.float32([5, 0]), (len(x), 1))  # noqa: E731
    stands = square(sure, TestImages.of(images(2), [0, 0]), LINF, seed=0, tick=done.append)
    assert stands.all()
    assert sum(done) == 2 * STEPS


def test_no_image_left_to_attack() -> None:
    nothing = TestImages.of(images(), np.zeros(40)).only([])
    assert len(square(brightness(0.5), nothing, LINF, seed=0)) == 0


# --- smaller files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantised(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "model.int8.onnx"
    path.write_bytes(finished(int8(exported, images()), {"variant": "int8"}))
    return path


def test_int8_is_smaller_another_network_and_the_same_bytes_again(exported: Path, quantised: Path) -> None:
    assert quantised.read_bytes() == finished(int8(exported, images()), {"variant": "int8"})
    weights = {i.name: i.data_type for i in onnx.load(str(quantised)).graph.initializer}
    assert onnx.TensorProto.INT8 in weights.values()
    assert notes_in(quantised)["variant"] == "int8"
    assert "threat" not in notes_in(quantised)  # nothing taken over that was not said again
    difference = np.abs(logits(open_session(quantised), images()) - logits(open_session(exported), images())).max()
    assert 0 < difference < 1


def test_what_is_known_to_break(exported: Path, tmp_path: Path) -> None:
    export_onnx(tiny(name="Inverted"), tmp_path / "inverted.onnx")
    inverted, plain = onnx.load(tmp_path / "inverted.onnx"), onnx.load(exported)
    assert "depthwise" in known_to_break("int8", inverted)
    assert not known_to_break("fp16", inverted)
    assert not known_to_break("int8", plain)


def test_fp16_answers_nearly_the_same(exported: Path) -> None:
    answered = logits(open_session(finished(fp16(exported), {})), images())
    expected = logits(open_session(exported), images())
    assert 0 < np.abs(answered - expected).max() < 0.01 * np.abs(expected).max()


def test_fp16_is_a_file_that_others_read(exported: Path) -> None:
    """ONNX wants nodes in order, and a copy in torch computes them so."""
    model = fp16(exported)
    onnx.checker.check_model(model)
    copied = TorchCopy(model)(torch.from_numpy(images())).numpy()
    expected = logits(open_session(exported), images())
    assert np.abs(copied - expected).max() < 0.01 * np.abs(expected).max()


def test_the_copy_is_the_file(quantised: Path) -> None:
    """Rounding may fall to the next integer here and there, which is one step of one activation."""
    x = images(200)
    copied, answered = TorchCopy(quantised)(torch.from_numpy(x)).numpy(), logits(open_session(quantised), x)
    assert np.median(np.abs(copied - answered)) < 1e-5
    assert (copied.argmax(1) == answered.argmax(1)).mean() > 0.97


def test_two_products_fit_in_16_bits(quantised: Path) -> None:
    assert_sums_fit(quantised)


def assert_sums_fit(file: Path) -> None:
    """Processors without VNNI add two products of a byte and a weight so; more than that saturates, and they answer
    otherwise than others."""
    tensors = [tensor for tensor in onnx.load(file).graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    largest = max(int(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max()) for tensor in tensors)
    assert 60 < largest <= 64
    assert 2 * 255 * largest < 2**15


def test_gradients_go_straight_through(exported: Path, quantised: Path) -> None:
    x = torch.from_numpy(images()).requires_grad_(True)
    assert torch.autograd.grad(rounded(3.3 * x).sum(), x)[0].unique().tolist() == pytest.approx([3.3])
    (through,) = torch.autograd.grad(TorchCopy(quantised)(x)[:, 0].sum(), x)
    (exact,) = torch.autograd.grad(tiny()(x)[:, 0].sum(), x)
    assert torch.cosine_similarity(through.flatten(), exact.flatten(), dim=0) > 0.9


@pytest.mark.slow
def test_the_white_box_is_stronger_than_nothing_and_judged_on_the_file(quantised: Path) -> None:
    x, y, copy = images(), labels(quantised), TorchCopy(quantised)
    answer = partial(logits, open_session(quantised))
    after = white_box(copy, answer, TestImages.of(x, y), LINF, seed=0)
    assert list(after) == ["APGD-CE", "APGD-T"]
    assert 0 < after["APGD-T"].sum() <= after["APGD-CE"].sum() < 40
    one = TestImages.of(x[:1], y[:1])
    constant = white_box(copy, lambda x: np.eye(10, dtype=np.float32)[y[:1].repeat(len(x))], one, LINF, seed=0)
    assert constant["APGD-T"].tolist() == [True]  # the copy is fooled, the file is not


def test_what_fools_the_copy_alone_breaks_nothing() -> None:
    x = grey([0.47, 0.49])
    copy = lambda p: 9 * torch.stack([0.5 - p.mean((1, 2, 3)), p.mean((1, 2, 3)) - 0.5], 1)  # noqa: E731
    sure = lambda p: np.tile(np.float32([1, 0]), (len(p), 1))  # noqa: E731
    shown, threat = TestImages.of(x, [0, 0]), Threat("linf", 0.1)
    assert white_box(copy, sure, shown, threat, seed=0)["APGD-CE"].all()
    assert not white_box(copy, brightness(0.5), shown, threat, seed=0)["APGD-CE"].any()


def test_logits_so_large_that_cross_entropy_has_no_gradient_do_not_hide_a_weakness(exported: Path) -> None:
    model, session = tiny(), open_session(exported)
    shown, threat = TestImages.of(images(12), labels(exported, 12)), Threat("linf", 0.1)
    after = white_box(lambda points: 1e6 * model(points), lambda x: 1e6 * logits(session, x), shown, threat, seed=0)
    assert after["APGD-CE"].all()
    assert not after["APGD-T"].any()


def test_three_classes_have_no_targeted_attack() -> None:
    copy = lambda x: torch.stack([x.mean((1, 2, 3)) * k for k in (1, 2, 3)], 1)  # noqa: E731
    x = TestImages.of(grey([0.5]), [2])
    after = white_box(copy, lambda x: copy(torch.from_numpy(x)).numpy(), x, LINF, seed=0)
    assert list(after) == ["APGD-CE"]


@pytest.mark.slow
def test_a_transformer_is_quantised_dynamically_and_copied(tmp_path: Path) -> None:
    from autolora.backbones.classifier import Spec, build

    options = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = build(Spec("vit_tiny_patch16_224", 10, 16, options=options)).eval()
    export_onnx(model, tmp_path / "vit.onnx")
    assert is_transformer(onnx.load(tmp_path / "vit.onnx"))
    (tmp_path / "int8.onnx").write_bytes(finished(int8(tmp_path / "vit.onnx", images()), {}))
    assert "DynamicQuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    x = np.random.default_rng(0).random((8, 3, 16, 16)).astype(np.float32)
    copied = TorchCopy(tmp_path / "int8.onnx")(torch.from_numpy(x)).numpy()
    answered = logits(open_session(tmp_path / "int8.onnx"), x)
    assert np.abs(copied - answered).max() < 0.1 * np.abs(answered).max()
    assert_sums_fit(tmp_path / "int8.onnx")


@pytest.mark.parametrize(("groups", "norm", "breaks"), [(4, False, True), (4, True, False), (1, False, False)])
def test_depthwise_convolutions_break_in_int8_where_no_layer_norm_follows(groups, norm, breaks):
    """MobileNet, ConvNeXt, and a convolution that is none."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=groups)]
    nodes += [helper.make_node("LayerNormalization", ["y", "s"], ["z"])] if norm else []
    weights = {"w": np.zeros((4, 4 // groups, 3, 3), np.float32), "s": np.ones(1, np.float32)}
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])], [],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    assert bool(known_to_break("int8", helper.make_model(graph))) == breaks
    assert not known_to_break("fp16", helper.make_model(graph))


def test_activations_are_scaled_on_all_calibration_images(exported):
    assert finished(int8(exported, images()), {}) != finished(int8(exported, images()[:1]), {})
