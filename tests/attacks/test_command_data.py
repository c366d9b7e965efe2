"""`autolora attack`: that the images which are looked at and attacked are those that are meant."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn
from torchvision.io import write_png

from autolora.attacks.onnx_file import apart
from autolora.command import budget, options
from autolora.command.attack import _key, add_to
from autolora.command.images import read, told
from autolora.command.models import Asked, Target, read_onnx, target
from autolora.command.suspicions import NoClassifier, look, recall
from autolora.common.command_line import Command
from autolora.common.errors import BadArgument
from autolora.data.examples import id_column, read_examples
from autolora.data.images import TestImages
from autolora.data.sample import stratified
from autolora.export.write import show
from autolora.threat import Threat
from tests.attacks import colours
from tests.attacks.test_command import run

X, Y = colours.images()


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = Command("test", reads="", writes="")
    add_to(parser.add_subparsers())
    return parser.parse_args(arguments)


# --- which images -----------------------------------------------------------------------------------------------------


def of_classes(counts: list[int]) -> TestImages:
    """No pixels: an id for each."""
    y = np.repeat(np.arange(len(counts)), counts)
    return TestImages(np.zeros(len(y)), y, [f"{label}-{i}" for i, label in enumerate(y.tolist())])


def test_a_last_turn_that_is_not_whole_is_not_of_the_first_classes() -> None:
    images = of_classes([50] * 100)
    chosen = stratified(images, 150, 0)
    counts = np.bincount(chosen.y, minlength=100)
    assert set(counts.tolist()) == {1, 2}
    assert 10 < counts[:50].tolist().count(2) < 40
    few = stratified(images, 50, 0)
    assert np.bincount(few.y).max() == 1
    assert 10 < (few.y >= 50).sum() < 40
    assert set(few.ids) < set(chosen.ids)  # more images are the same ones, and more


def prepared(folder: Path, names: list[str], y: np.ndarray) -> Path:
    folder.mkdir()
    np.save(folder / "images.npy", X)
    np.save(folder / "labels.npy", y)
    np.save(folder / "ids.npy", np.array([i.encode() for i in TestImages.of(X, Y).ids], "S64"))
    (folder / "classes.json").write_text(json.dumps(names))
    return folder


def test_prepared_images_of_another_order_are_known_by_their_names(tmp_path: Path) -> None:
    """Their numbers are of their own order of classes, and not of the model's."""
    there = prepared(tmp_path / "test", ["blue", "green", "red"], 2 - Y)
    found = read(str(there), "all", 0, None, colours.NAMES)
    order = {name: i for i, name in enumerate(TestImages.of(X, Y).ids)}
    assert found.images.y.tolist() == [int(Y[order[name]]) for name in found.images.ids]
    assert found.classes == colours.NAMES
    assert read(str(there), "all", 0, None, None).classes == ["blue", "green", "red"]
    with pytest.raises(BadArgument, match="'blue' is no class of the model: red, green"):
        read(str(there), "all", 0, None, ["red", "green"])


def test_what_was_attacked_can_be_attacked_again_and_twice_the_same_image(tmp_path: Path) -> None:
    """Ids are stored as bytes, in a column of 64 letters."""
    model = colours.write(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([X, X[:3]]), y=np.concatenate([Y, Y[:3]]))
    data, first, second = tmp_path / "d.npz", tmp_path / "first", tmp_path / "second"
    how = ["--eps", "8/255", "--version", "fast", "--out"]
    assert run("attack", model, "--data", data, *how, first) == 0
    assert run("verify", first) == 0
    assert run("attack", model, "--data", first / "adversarial.npz", *how, second) == 0
    assert run("verify", second) == 0
    flags = [np.load(folder / "robust_flags.npy") for folder in (first, second)]
    assert len(set(flags[0]["id"].tolist())) == 27
    assert flags[0].tolist() == flags[1].tolist()


def test_names_of_ones_own_are_kept_whole(tmp_path: Path) -> None:
    """Longer than a hash, and not of ASCII: what was written is what is read."""
    ids = [f"validierung/n01440764/{'länger als ein hash ' * 3}/{i}.png" for i in range(len(X))]
    np.savez(tmp_path / "d.npz", x=X, y=Y, ids=np.array(ids))
    out = tmp_path / "out"
    told_so = ["--data", tmp_path / "d.npz", "--eps", "8/255", "--version", "fast", "--out", out]
    assert run("attack", colours.write(tmp_path / "m.onnx"), *told_so) == 0
    assert {i.decode() for i in np.load(out / "robust_flags.npy")["id"].tolist()} == set(ids)
    assert set(read_examples(out / "adversarial.npz").images.ids) == set(ids)
    assert run("verify", out) == 0


def test_columns_of_hashes_are_as_wide_as_ever() -> None:
    assert id_column(["a" * 64]).dtype == id_column([]).dtype == id_column(["a"]).dtype == "S64"


def test_a_corrected_label_is_another_attack(tmp_path: Path) -> None:
    """Its progress must not stop the command that goes on."""
    chosen = parsed(["attack", "m.onnx", "--data", "d", "--eps", "8/255"])
    model, keys = Target("m", "ONNX", nn.Identity(), "a" * 64, None), set()
    for label in (0, 1):
        np.savez(tmp_path / "d.npz", x=X, y=np.where(np.arange(24) == 5, label, Y))
        data = read(str(tmp_path / "d.npz"), "all", 0, None, None)
        keys.add(_key(model, data, Threat("linf", 8 / 255), chosen))
    assert len(keys) == 2


def test_each_option_that_changes_the_attack_has_progress_of_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    model, data = (
        Target("m", "ONNX", nn.Identity(), "a" * 64, None),
        read(str(tmp_path / "d.npz"), "all", 0, None, None),
    )
    more = ["", "--seed=1", "--version=fast", "--batch=3", "--also=l2:0.5", "--budget=1", "--before-softmax"]
    more += ["--normalised", "--layout=nhwc", "--mean=0 --std=1", "--mean=0 --std=2", "--mean=1 --std=1"]
    keys = set()
    for said in more:
        chosen = parsed(["attack", "m.onnx", "--data", "d", "--eps", "8/255", *said.split()])
        keys.add(_key(model, data, Threat("linf", "8/255"), chosen))
    assert len(keys) == len(more)


@pytest.mark.parametrize(
    ("x", "says"),
    [(None, "it is no .npz of arrays"), (X[:, 0], "of grey ones save [n,1,h,w]")],
)
def test_arrays_that_cannot_be_meant(tmp_path: Path, x: np.ndarray | None, says: str) -> None:
    file = tmp_path / "d.npz"
    np.savez(file, x=X if x is None else x, y=Y)
    if x is None:
        file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(BadArgument) as refused:
        read(str(file), "all", 0, None, None)
    assert says in str(refused.value)


def test_many_names_on_the_command_line() -> None:
    names = [f"class{i:03d}" for i in range(60)]
    assert options.classes(",".join(names)) == names


# --- which files ------------------------------------------------------------------------------------------------------


def in_folders(root: Path) -> Path:
    for i, (x, y) in enumerate(zip(X, Y)):
        (folder := root / colours.NAMES[y]).mkdir(parents=True, exist_ok=True)
        write_png(torch.from_numpy(x), str(folder / f"{i}.png"))
    return root


def test_a_folder_without_an_image_shifts_no_label(tmp_path: Path) -> None:
    """Between green and red; whether it is a class only the user knows."""
    root = in_folders(tmp_path / "images")
    (root / "pink").mkdir()
    (root / "pink" / "0.heic").write_bytes(b"not read")
    with pytest.raises(BadArgument, match=r"no image that is read lies in its folder 'pink' .* or say --classes"):
        read(str(root), "all", 0, None, None)
    found = read(str(root), "all", 0, None, ["blue", "green", "pink", "red"])
    assert np.bincount(found.images.y).tolist() == [8, 8, 0, 8]
    assert found.notes == {"passed_over": {".heic": 1}}
    assert told(found.notes) == ["files that are no image by their ending are passed over: 1 .heic"]


def test_copies_that_editors_and_macos_make_are_no_images(tmp_path: Path) -> None:
    root = in_folders(tmp_path / "images")
    (hidden := root / "red" / ".ipynb_checkpoints").mkdir()
    (hidden / "0-checkpoint.png").write_bytes((root / "red" / "0.png").read_bytes())
    (root / "red" / "._0.png").write_bytes(b"\0\5\x16\7Mac OS X")
    (root / "red" / "Thumbs.db").write_bytes(b"")
    (deeper := root / "red" / "more").mkdir()
    (root / "red" / "0.png").rename(deeper / "0.png")
    found = read(str(root), "all", 0, None, None)
    assert (found.of, found.notes) == (24, {})


def test_a_table_is_read_as_prepare_reads_it(tmp_path: Path) -> None:
    """Blanks around a cell, a row that is there twice, an image under two labels."""
    in_folders(tmp_path)
    rows = ["Path, label", "red/0.png,red", " red/3.png , red", "red/0.png,red", "green/1.png,green", "red/0.png,green"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    found = read(str(tmp_path / "t.csv"), "all", 0, None, ["red", "green"])
    assert sorted(found.images.y.tolist()) == [0, 0, 1, 1]
    assert found.notes == {"repeated": 1, "two_labels": 1}
    assert len(told(found.notes)) == 2
    (tmp_path / "t.csv").write_text("path,label\nred/0.png, \n")
    with pytest.raises(BadArgument, match="line 2 lacks a path or a label"):
        read(str(tmp_path / "t.csv"), "all", 0, None, None)


def test_what_is_odd_about_the_images_is_said_and_recorded(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    twice = tmp_path / "d.npz"
    np.savez(twice, x=np.concatenate([X, X[:1]]), y=np.concatenate([Y, Y[1:2]]))
    out = tmp_path / "out"
    told_so = ["--data", twice, "--eps", "8/255", "--version", "fast", "--out", out]
    assert run("attack", colours.write(tmp_path / "m.onnx"), *told_so) == 0
    assert "attack: 1 images are there under two labels, of which one is wrong" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["data"]["two_labels"] == 1


# --- no classifier? ---------------------------------------------------------------------------------------------------


def looked(found: list[int], y: list[int], classes: int = 3) -> None:
    answers = torch.eye(classes)[torch.tensor(found)]
    x = torch.arange(len(y)).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    names = [str(i) for i in range(classes - 1)]  # one has none
    look(lambda part: answers[part[:, 0, 0, 0].long()], x, torch.tensor(y), names, normalised=True, guessed=False)


@pytest.mark.parametrize(
    ("found", "y"),
    [
        ([0] * 95 + [1] * 5 + [1] * 8 + [0] * 2, [0] * 100 + [1] * 10),  # 95 and 80 % of two classes
        ([0] * 200 + [1] * 56, [0] * 256),  # images of one class
        ([0, 1], [0, 1]),  # few, and all of them right
        ([0, 1, 2] * 5 + [1, 2, 0] * 5, [0, 1, 2] * 10),  # half of three
    ],
)
def test_a_classifier_is_one(found: list[int], y: list[int]) -> None:
    looked(found, y)


@pytest.mark.parametrize(
    ("found", "y"),
    [
        ([0] * 110, [0] * 100 + [1] * 10),  # one answer, right on 91 %
        ([1] * 20, [0] * 20),  # none is right
        ([0, 1, 2] * 10, [0] * 10 + [1] * 10 + [2] * 10),  # answers that do not look
    ],
)
def test_no_classifier_is_none(found: list[int], y: list[int]) -> None:
    with pytest.raises(NoClassifier, match="no more than by chance"):
        looked(found, y)


def test_classes_without_a_name_are_told_by_their_number() -> None:
    with pytest.raises(NoClassifier, match="images of '1' are taken for class 2, images of '2' are taken for class 1"):
        looked([0] + [2] * 9 + [1] * 9, [0] + [1] * 9 + [2] * 9)


def test_chance_is_what_answers_give_that_do_not_look() -> None:
    """Drawn ten thousand times: rarely as far off as 1.64 deviations, and 1/k on the average."""
    draw, y = np.random.default_rng(0), torch.tensor([0] * 30 + [1] * 10 + [2] * 5)
    drawn = [recall(torch.from_numpy(draw.choice(3, 45, p=[0.6, 0.3, 0.1])), y) for _ in range(3000)]
    assert np.mean([one.share for one in drawn]) == pytest.approx(1 / 3, abs=0.01)
    assert np.mean([one.beyond_chance(1.64) for one in drawn]) < 0.09


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_size_where_the_file_leaves_it_free(tmp_path: Path) -> None:
    model = onnx.load(str(colours.write(tmp_path / "m.onnx")))
    fixed = target(Asked(str(tmp_path / "m.onnx"), size=8))
    assert fixed.shape == (3, 8, 8)
    with pytest.raises(BadArgument, match="size is 16: the model takes 8x8"):
        target(Asked(str(tmp_path / "m.onnx"), size=16))
    for place, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    onnx.save(model, str(tmp_path / "free.onnx"))
    assert target(Asked(str(tmp_path / "free.onnx"))).shape is None
    assert target(Asked(str(tmp_path / "free.onnx"), size=16)).shape == (3, 16, 16)


def test_bytes_are_not_normalised(tmp_path: Path) -> None:
    path = str(colours.write(tmp_path / "m.onnx", "bytes"))
    with pytest.raises(BadArgument, match="takes bytes: what they stand for the file decides itself"):
        target(Asked(path, normalise=((0.1,), (0.9,))))


def test_before_the_softmax_of_a_file_in_float16(tmp_path: Path) -> None:
    """As the usual converter writes it: images and answers in float32, all between in float16."""
    model = onnx.load(str(colours.write(tmp_path / "m.onnx", "half")))
    image, output = model.graph.input[0], model.graph.output[0]
    for value in (image, output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in model.graph.node:
        node.input[:] = ["small" if name == "image" else name for name in node.input]
    output.name = "shares"
    model.graph.node.insert(0, helper.make_node("Cast", ["image"], ["small"], to=onnx.TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["soft"]))
    model.graph.node.append(helper.make_node("Cast", ["soft"], ["shares"], to=onnx.TensorProto.FLOAT))
    onnx.save(model, str(tmp_path / "m.onnx"))
    network = target(Asked(str(tmp_path / "m.onnx"), before_softmax=True)).network
    whole = target(Asked(str(colours.write(tmp_path / "whole.onnx")))).network
    x = torch.from_numpy(X).float() / 255
    torch.testing.assert_close(network(x), whole(x), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("text", ["['cat', 'dog', 'bird']", "{0: 'cat'}"])
def test_notes_that_others_wrote(tmp_path: Path, text: str) -> None:
    model = onnx.load(str(colours.write(tmp_path / "m.onnx")))
    helper.set_model_props(model, {"classes": text})
    onnx.save(model, str(tmp_path / "m.onnx"))
    assert target(Asked(str(tmp_path / "m.onnx"))).classes is None
    assert show(tmp_path / "m.onnx")["classes"] == text


def test_means_below_zero_and_shares_above_one(capfd: pytest.CaptureFixture) -> None:
    told = ["attack", "m.onnx", "--data", "d", "--eps", "8/255"]
    asked = options.of_model(parsed([*told, "--mean=-0.5,0,1/2", "--std", "0.5"]))
    assert asked.normalise == ((-0.5, 0, 0.5), (0.5,))
    assert run(*told, "--require-robust", "50") == 2
    assert "--require-robust is 50.0: expected a share of the images, from 0 to 1" in capfd.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-5", "nan", "inf"])
def test_a_budget_is_of_minutes(capfd: pytest.CaptureFixture, minutes: str) -> None:
    assert run("attack", "m.onnx", "--data", "d", "--eps", "8/255", f"--budget={minutes}") == 2
    assert f"--budget is {float(minutes)}: expected minutes, more than 0" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["cat\ndog\n", '["cat", "dog"]'])
def test_names_of_classes_as_windows_saves_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8-sig")
    assert options.classes(str(tmp_path / "classes.txt")) == ["cat", "dog"]


def test_an_archive_that_takes_one_image_at_a_time(capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), tmp_path / "m.pt2")
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    where = ["--data", tmp_path / "d.npz", "--out", tmp_path / "out"]
    assert run("attack", tmp_path / "m.pt2", *where, "--eps", "8/255", "--trust") == 2
    assert "does not take several images [3, 8, 8] at once (export it for any batch): " in capfd.readouterr().err


# --- how long ---------------------------------------------------------------------------------------------------------


class Slow(nn.Module):
    """Ten answers to each image, by a clock of its own: an image's forward takes a second, its way back nothing."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.now += len(x)
        return x.mean((1, 2, 3)).view(-1, 1) * torch.arange(10.0)


def test_a_budget_counts_answers_where_scores_alone_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y % 2)
    data = read(str(tmp_path / "d.npz"), "all", 0, None, ["a", "b"])
    model, threat = Target("m", "torch", Slow(), "a" * 64, None), Threat("linf", 8 / 255)
    monkeypatch.setattr(budget, "time", model.network)
    assert budget._seconds(model, data, "square") == 1
    assert budget._seconds(model, data, "fast") == 0.5
    ten = budget._work(model, data, [threat], "fast")
    assert budget._work(model, data, [threat, Threat("l2", 0.5)], "fast") == 2 * ten  # --also
    model.network = nn.Sequential(Slow(), Two())
    assert ten > 5 * budget._work(model, data, [threat], "fast")


class Two(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, :2]


# --- held against the file --------------------------------------------------------------------------------------------


def test_no_number_on_one_side_is_a_difference() -> None:
    nan, one = np.array([[np.nan, 1.0]]), np.array([[0.0, 1.5]])
    assert apart(nan, nan) == 0
    assert apart(one, nan) == np.inf
    assert apart(one, one + 0.25) == 0.25


def test_the_file_is_as_it_was(tmp_path: Path) -> None:
    """`--before-softmax` cuts the graph in memory alone."""
    path = colours.write(tmp_path / "m.onnx", "softmax")
    before = path.read_bytes()
    target(Asked(str(path), before_softmax=True))
    assert path.read_bytes() == before
    assert read_onnx(path).graph.output[0].name == "shares"
