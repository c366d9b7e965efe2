"""`autolora attack`: forms of files and data against what is known of the file, and each bad input in one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch import Tensor
from torchvision.io import write_png

from autolora.attacks.also import Also
from autolora.attacks.autoattack import autoattack_of
from autolora.attacks.engine.file_network import FileNetwork
from autolora.attacks.evaluation import Settings
from autolora.command import budget, result
from autolora.command import images as pictures
from autolora.command.main import main
from autolora.common.errors import BadArgument
from autolora.data.examples import read_examples
from autolora.data.images import TestImages
from autolora.export.runtime import logits, open_session
from autolora.threat import Threat
from stages.dataset.decode import decode
from tests.attacks import colours
from tests.export.quantiser import quantised_file

EPS = 8 / 255
X, Y = colours.images()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x=X, y=Y)
    return path


def run(*arguments: object) -> int:
    """In this process alone: a fork must come before the first gradient."""
    alone = ["--processes", "1"] if arguments[0] == "attack" and "--processes" not in arguments else []
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments] + alone)
    return int(ended.value.code or 0)


def attacked(tmp_path: Path, model: Path, data: Path, *more: object, version: str = "fast") -> np.ndarray:
    """The flags, in the order of the data."""
    out = tmp_path / "out"
    assert run("attack", model, "--data", data, "--eps", "8/255", "--version", version, "--out", out, *more) == 0
    flags = np.load(out / result.FLAGS)
    order = {image: i for i, image in enumerate(TestImages.of(X, Y).ids)}
    found = np.zeros(len(X), bool)
    found[[order[image.decode()] for image in flags["id"]]] = flags["robust"]
    return found


@pytest.mark.slow
def test_what_stands_is_what_must_stand(tmp_path: Path, data: Path) -> None:
    """Standard AutoAttack on a file, and all that is written."""
    found = attacked(tmp_path, colours.write(tmp_path / "model.onnx"), data, version="standard")
    assert (found == colours.stands(X, Y, EPS)).all()
    assert 0 < found.sum() < len(X)
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["robust_accuracy"] == found.mean()
    assert [one["name"] for one in record["attacks"]] == ["apgd-ce", "fab-t", "square"]
    assert record["model"]["agreement"]["label_flips"] == 0
    assert record["versions"]["onnxruntime"]
    examples = read_examples(tmp_path / "out" / "adversarial.npz")
    answers = logits(open_session(tmp_path / "model.onnx"), examples.adversarial).argmax(1)
    assert (answers[examples.found] != examples.images.y[examples.found]).all()
    page = (tmp_path / "out" / "card.html").read_text()
    assert "Adversarial images" in page
    assert "://" not in page
    assert not (tmp_path / "out.progress").exists()
    assert run("verify", tmp_path / "out") == 0
    assert run("show", tmp_path / "out") == 0
    np.save(tmp_path / "out" / result.FLAGS, np.load(tmp_path / "out" / result.FLAGS)[::-1])
    assert run("verify", tmp_path / "out") == 1


FORMS: list[tuple[str, int | str, list[str]]] = [
    ("float", "n", []),
    ("float", 1, ["--batch", "8"]),
    ("float", 5, []),
    ("half", "n", []),
    ("nhwc", "n", ["--layout", "nhwc"]),
    ("bytes", "n", []),
    ("softmax", "n", ["--before-softmax"]),
    ("wants255", "n", ["--mean", "0", "--std", "1/255"]),
]


@pytest.mark.parametrize(("form", "batch", "options"), FORMS)
def test_forms_of_files(tmp_path: Path, data: Path, form: str, batch: int | str, options: list[str]) -> None:
    found = attacked(tmp_path, colours.write(tmp_path / "model.onnx", form, batch), data, *options)
    apart = found != colours.stands(X, Y, EPS)
    assert apart.sum() <= (1 if form in ("half", "bytes") else 0)  # half precision and bytes move the boundary


@pytest.mark.parametrize("form", ["QDQ", "dynamic"])
def test_eight_bits(tmp_path: Path, data: Path, form: str) -> None:
    """Never weaker than the float file's own adversarial images, shown to it."""
    model, few = colours.write(tmp_path / "model.onnx"), ["--images", 9, "--batch", 9]
    path = quantised_file(model, X.astype(np.float32) / 255, form)
    found = attacked(tmp_path, path, data, *few)
    attacked(tmp_path, model, data, *few)
    examples = read_examples(tmp_path / "out" / "adversarial.npz")
    replayed = logits(open_session(path), examples.adversarial, 1).argmax(1) == examples.images.y
    assert found.sum() <= replayed.sum() < 9


def test_data_in_every_form(tmp_path: Path) -> None:
    model, expected = colours.write(tmp_path / "model.onnx"), colours.stands(X, Y, EPS)
    rows = ["path,label"]
    for i, (x, y) in enumerate(zip(X, Y)):
        folder = tmp_path / "images" / colours.NAMES[y]
        folder.mkdir(parents=True, exist_ok=True)
        write_png(torch.from_numpy(x), str(folder / f"{i}.png"))
        rows.append(f"images/{colours.NAMES[y]}/{i}.png,{colours.NAMES[y]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    (tmp_path / "names.txt").write_text("\n".join(colours.NAMES))
    prepared = tmp_path / "test"
    prepared.mkdir()
    np.save(prepared / "images.npy", X)
    np.save(prepared / "labels.npy", Y)
    np.save(prepared / "ids.npy", np.array([i.encode() for i in TestImages.of(X, Y).ids], "S64"))
    (prepared / "classes.json").write_text(json.dumps(colours.NAMES))
    order = ["--classes", ",".join(colours.NAMES)]
    for data, options in (("images", order), ("table.csv", ["--classes", str(tmp_path / "names.txt")]), ("test", [])):
        assert (attacked(tmp_path, model, tmp_path / data, *options) == expected).all()


def test_networks_of_torch(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "colour_network.py").write_text(
        "import torch\n"
        "class Colours(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.ones(3))\n"
        "    def forward(self, x):\n"
        "        return 25.5 * x.mean((2, 3)) * self.scale\n"
    )
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights.pt"
    torch.save({"state_dict": {"scale": torch.ones(3)}}, weights)
    expected = colours.stands(X, Y, EPS)
    assert (attacked(tmp_path, "colour_network:Colours", data, "--weights", weights) == expected).all()  # type: ignore[arg-type]
    module = __import__("colour_network").Colours().eval()
    shape = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(module, (torch.rand(2, 3, 8, 8),), dynamic_shapes=shape), "model.pt2")
    assert (attacked(tmp_path, Path("model.pt2"), data, "--trust") == expected).all()


# --- who judges -------------------------------------------------------------------------------------------------------


def test_only_the_file_says_what_is_broken(tmp_path: Path) -> None:
    """A copy that is fooled everywhere, and knows the way, breaks what the file is fooled by."""
    network = FileNetwork(onnx.load(colours.write(tmp_path / "model.onnx")))
    images = TestImages.of(X, Y)

    def gullible(x: Tensor) -> Tensor:
        assert network.copy is not None
        true = network.copy(x)
        return true - (2 * true).detach()

    network.derivable = gullible
    report = autoattack_of(network, images, Threat("linf", EPS), Settings(version="fast", show=False))
    assert (report.robust.numpy() == colours.stands(X, Y, EPS)).all()


def test_a_copy_that_is_another_network_is_not_used(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileNetwork, "copied", lambda self, x: self.answers(x) + 1)
    few = ["--images", 3]
    attacked(tmp_path, colours.write(tmp_path / "model.onnx"), data, *few)
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["version"] == "square"
    assert record["deviation"].startswith("Square alone: its torch copy differs from onnxruntime by 1.0e+00")


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = colours.write(tmp_path / "model.onnx"), tmp_path / "out"
    told = ("attack", model, "--data", data, "--eps", "8/255", "--version", "fast", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(result, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*told) == 130
    assert not out.exists()
    kept = list((tmp_path / "out.progress").rglob("apgd-ce.*.npz"))
    assert kept
    monkeypatch.setattr("autolora.attacks.engine.slots.Slots.run", lambda self, jobs, *_: jobs and pytest.fail("again"))
    assert (attacked(tmp_path, model, data) == colours.stands(X, Y, EPS)).all()


@pytest.mark.slow
def test_several_processes_come_to_what_one_does(tmp_path: Path, data: Path, python: str) -> None:
    """A process of its own, since a fork must come before the first gradient; the folder is written once."""
    model = colours.write(tmp_path / "model.onnx")
    found = attacked(tmp_path, model, data)
    said = ["--data", str(data), "--eps", "8/255", "--version", "fast", "--out", "two", "--processes", "2"]
    command = [python, "-m", "autolora", "attack", str(model), *said]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("written") == 1
    assert found.any()
    for name in (result.FLAGS, "adversarial.npz"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_faster_derivative_is_taken_at_any_batch(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(FileNetwork, "hasten", lambda self, model, x: taken.append(len(x)))
    for options in ([], ["--batch", "8"]):
        attacked(tmp_path, colours.write(tmp_path / "model.onnx"), data, *options)
    assert len(taken) == 2


def test_a_failed_check_leaves_nothing_to_go_on_with(
    capfd: pytest.CaptureFixture, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square breaks what gradients did not: they lead nowhere, and would do so again."""
    monkeypatch.setattr(FileNetwork, "quick", lambda self, x: self.answers(x) + 0 * x.sum())
    monkeypatch.setattr(FileNetwork, "forward", lambda self, x: self.answers(x) + 0 * x.sum())
    model = colours.write(tmp_path / "m.onnx")
    refused(capfd, tmp_path, model, "--data", data, says="masked gradients")


def test_a_budget_says_what_was_left_out(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_seconds", lambda *_: 0.01)
    attacked(tmp_path, colours.write(tmp_path / "model.onnx"), data, "--budget", "0.2")
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    left = 24 - record["data"]["n"]
    assert left == 24 - int(12 / (0.01 * 202))  # APGD: 101 gradients
    assert record["model"]["left_out"].startswith(f"{left} of 24 images are left out")


def test_other_threats_on_the_same_images(tmp_path: Path, data: Path) -> None:
    model = colours.write(tmp_path / "model.onnx")
    attacked(tmp_path, model, data, "--also", "linf:16/255,l2:0.2")
    rows = {row["what"]: row for row in json.loads((tmp_path / "out" / "report.json").read_text())["also"]}
    flags = np.load(tmp_path / "out" / result.FLAGS)
    assert set(rows) == {"linf:16/255", "l2:0.2", "union"}
    assert rows["linf:16/255"]["accuracy"] == colours.stands(X, Y, 16 / 255).mean()
    assert rows["union"]["accuracy"] == (flags["robust"] & flags["linf:16/255"] & flags["l2:0.2"]).mean()
    assert rows["union"]["accuracy"] <= min(row["accuracy"] for row in rows.values())
    page = (tmp_path / "out" / "card.html").read_text()
    assert "Beyond the threat" in page


def test_corruptions_count_each_image_once() -> None:
    right = torch.ones(4, 15, 5, dtype=torch.bool)
    right[0] = False
    right[1, 3, 2:] = False
    also = Also({}, right)
    (row,) = also.rows(None, 32, dict)  # type: ignore[arg-type]  # no threat, no union
    assert row["what"] == "corruptions"
    assert row["accuracy"] == 1 - (75 + 3) / 300
    assert row["kinds"][3] == {"name": "defocus_blur", "accuracy": 0.6, "by_severity": [0.75, 0.75, 0.5, 0.5, 0.5]}
    assert also.columns()["corruptions"].tolist() == [0, 72, 75, 75]


def test_too_few_that_stand(tmp_path: Path, data: Path) -> None:
    model = colours.write(tmp_path / "model.onnx")
    told = ("attack", model, "--data", data, "--eps", "8/255", "--version", "fast", "--out", tmp_path / "out")
    assert run(*told, "--require-robust", "0.99") == 1
    assert run(*told, "--require-robust", float(colours.stands(X, Y, EPS).mean())) == 0  # exactly so many


def test_an_error_that_nobody_foresaw_is_no_verdict(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """1 would say that fewer images stand than --require-robust asks for."""
    monkeypatch.setattr(budget, "_seconds", lambda *_: {}["none"])
    model = colours.write(tmp_path / "m.onnx")
    told = ("attack", model, "--data", data, "--eps", "8/255", "--budget", "1", "--out", tmp_path / "out")
    assert run(*told, "--require-robust", "0.2") == 3
    said = capfd.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert said.startswith("attack: an error that nobody foresaw, please report it: KeyError 'none' (test_command.py")


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(capfd: pytest.CaptureFixture, tmp_path: Path, *arguments: object, says: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run("attack", *arguments, "--eps", "8/255", "--out", tmp_path / "out") == 2
    said = capfd.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert said.startswith("attack: ")
    assert says in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("form", "options", "says"),
    [
        ("softmax", [], "answers with probabilities, whose slopes vanish: --before-softmax"),
        ("nan", [], "NaN or infinite at 24 of 24 images"),
        ("nhwc", [], "channels last: say so with --layout nhwc"),
        ("float", ["--layout", "nhwc"], "channels first: leave --layout nhwc out"),
        ("float", ["--before-softmax"], "its output is made by Gemm"),
        ("float", ["--mean", "0.5"], "--mean and --std belong together"),
        ("float", ["--mean", "x", "--std", "1"], "--mean is 'x': expected numbers such as"),
        ("float", ["--also", "linf:8/255"], "linf:8/255 is the threat itself"),
        ("float", ["--also", "corruptions"], "corruptions need images of three channels and 16 pixels a side"),
        ("float", ["--images", "0"], "--images is '0': expected a number from 1, or all"),
    ],
)
def test_files_that_cannot_be_attacked(
    capfd: pytest.CaptureFixture, tmp_path: Path, data: Path, form: str, options: list[str], says: str
) -> None:
    refused(capfd, tmp_path, colours.write(tmp_path / "m.onnx", form), "--data", data, *options, says=says)


@pytest.mark.parametrize("option", ["--processes", "--batch", "--size"])
def test_counts_are_whole_numbers_from_one(capfd: pytest.CaptureFixture, option: str) -> None:
    assert run("attack", "m.onnx", "--data", "x", "--eps", "8/255", option, "0") == 2
    assert f"argument {option}: expected a whole number from 1, not 0" in capfd.readouterr().err


def test_images_that_onnxruntime_cannot_take(capfd: pytest.CaptureFixture, tmp_path: Path, data: Path) -> None:
    """Its own complaint beside ours would be a second one."""
    model = onnx.load(colours.write(tmp_path / "m.onnx"))
    del model.graph.value_info[:]
    model.graph.node.insert(0, onnx.helper.make_node("Reshape", ["image", "sides"], ["turned"]))
    model.graph.node[1].input[0] = "turned"
    model.graph.initializer.append(numpy_helper.from_array(np.array([24, 3, 8, 8]), "sides"))  # and never one image
    onnx.save(model, str(tmp_path / "m.onnx"))
    refused(capfd, tmp_path, tmp_path / "m.onnx", "--data", data, says="does not take images [3, 8, 8]: [ONNX")


def saved(path: Path, x: np.ndarray, y: np.ndarray) -> Path:
    np.savez(path, x=x, y=y)
    return path


def test_data_that_cannot_be_meant(capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    model = colours.write(tmp_path / "m.onnx")
    for x, y, says in (
        (X.astype(np.float32), Y, "divide them by 255"),
        (X.astype(np.float32) / 128 - 1, Y, "expected [0,1], before any normalising"),
        (X[..., :6, :6], Y, "its images are 3x6x6, and the model takes 3x8x8"),
        (X, Y + 1, "labels from 1 to 3, and the network answers for 3 classes"),
        (
            X,
            (Y + 1) % 3,
            "the labels seem to be in another order than the model's (images of '0' are taken for class 2",
        ),
        (X, (Y + np.arange(24) // 3) % 3, "random weights, other pixels than [0,1]"),
    ):
        refused(capfd, tmp_path, model, "--data", saved(tmp_path / "d.npz", x, y), says=says)
    refused(capfd, tmp_path, model, "--data", tmp_path / "none", says="there is no such file or folder")
    refused(capfd, tmp_path, tmp_path / "none.onnx", "--data", tmp_path / "d.npz", says="there is no such file")


def test_folders_in_another_order(capfd: pytest.CaptureFixture, tmp_path: Path) -> None:
    for i, (x, y) in enumerate(zip(X, Y)):
        (folder := tmp_path / "images" / colours.NAMES[y]).mkdir(parents=True, exist_ok=True)
        write_png(torch.from_numpy(x), str(folder / f"{i}.png"))
    says = "the folders seem to be in another order than the model's"
    refused(capfd, tmp_path, colours.write(tmp_path / "m.onnx"), "--data", tmp_path / "images", says=says)


def test_pixels_that_the_model_does_not_expect(capfd: pytest.CaptureFixture, tmp_path: Path, data: Path) -> None:
    """A file that subtracts 127 and looks which colours are left."""
    path = colours.write(tmp_path / "m.onnx", "wants255")
    model = onnx.load(path)
    model.graph.node.insert(0, onnx.helper.make_node("Relu", ["moved"], ["left"]))
    model.graph.node.insert(0, onnx.helper.make_node("Sub", ["image", "level"], ["moved"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(100), "level"))
    model.graph.node[2].input[0] = "left"
    onnx.save(model, str(path))
    refused(capfd, tmp_path, path, "--data", data, says="with --mean 0 --std 1/255 it is 24")


def test_graphs_that_have_no_copy(capfd: pytest.CaptureFixture, tmp_path: Path, data: Path) -> None:
    path = colours.write(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Det", ["logits"], ["d"]))
    onnx.save(model, str(path))
    refused(capfd, tmp_path, path, "--data", data, says="no rule for Det in torch, so there are no gradients")
    model.graph.node.pop()
    form = {"axes": [2, 3], "keep_aspect_ratio_policy": "not_smaller"}
    resize = onnx.helper.make_node("Resize", ["image", "", "", "sides"], ["resized"], **form)
    model.graph.node.insert(0, resize)
    model.graph.node[1].input[0] = "resized"
    model.graph.initializer.append(numpy_helper.from_array(np.array([8, 8]), "sides"))
    model.opset_import[0].version = 18
    onnx.save(model, str(path))
    refused(capfd, tmp_path, path, "--data", data, says="no rule for Resize that keeps the aspect ratio in torch")
    path.write_bytes(path.read_bytes()[:-40])
    refused(capfd, tmp_path, path, "--data", data, says="is no ONNX file, or it is damaged")
    with open(path, "wb") as file:
        file.truncate(2**31 + 10)  # no byte of it is on the disk
    refused(capfd, tmp_path, path, "--data", data, says="holds 2.1 GB: one ONNX file holds 2.1 GB at most")


def test_a_folder_that_is_somebody_elses(capfd: pytest.CaptureFixture, tmp_path: Path, data: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    says = "it is there already, and no attack wrote it"
    refused(capfd, tmp_path, colours.write(tmp_path / "m.onnx"), "--data", data, says=says)
    report = tmp_path / "out" / "report.json"
    report.write_text('{"tests": 12}')  # another program's
    refused(capfd, tmp_path, tmp_path / "m.onnx", "--data", data, says=says)
    report.write_text('{"robust_accuracy": 1, "attacks": [], "files": {}}')
    refused(capfd, tmp_path, tmp_path / "m.onnx", "--data", data, says="thesis.txt in it is of nobody's attack")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def pictures_of_every_kind(folder: Path) -> None:
    """Sixteen bits, transparency, grey, palettes of few and of many colours, an EXIF turn, and animations."""
    ramp = np.linspace(0, 65535, 36).astype(np.uint16).reshape(6, 6)
    clear = np.concatenate([np.zeros((6, 6, 3), np.uint8), np.full((6, 6, 1), 128, np.uint8)], 2)
    colourful = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(ramp).save(folder / "sixteen.png")
    Image.fromarray(clear, "RGBA").save(folder / "clear.png")
    Image.fromarray((ramp // 257).astype(np.uint8)).save(folder / "grey.png")
    for colours_of, bits in ((2, 1), (4, 2), (16, 4), (256, 8)):
        colourful.quantize(colours_of).save(folder / f"palette{colours_of}.png", bits=bits)
    colourful.quantize(8).save(folder / "hole.png", transparency=0)
    frames = {"save_all": True, "append_images": [Image.new("RGB", (6, 6), "blue")]}
    Image.new("RGB", (6, 6), "red").save(folder / "two.gif", **frames)
    colourful.save(folder / "two.webp", lossless=True, **frames)
    colourful.save(folder / "turned.webp", lossless=True, exif=turned)
    colourful.save(folder / "turned.png", exif=turned)
    colourful.save(folder / "turned.jpg", exif=turned)
    colourful.convert("CMYK").save(folder / "cmyk.jpg")
    colourful.save(folder / "plain.bmp")


@pytest.mark.parametrize("size", [6, 12])
def test_pictures_are_read_as_prepare_reads_them(tmp_path: Path, size: int) -> None:
    pictures_of_every_kind(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        ours, was = pictures._decoded(file, (3, size, size))
        theirs, _ = decode(file.read_bytes(), 6)
        assert (ours.shape, ours.dtype, was) == ((3, size, size), np.uint8, (6, 6))
        if size == 6:
            assert np.array_equal(ours, theirs), file.name


@pytest.mark.parametrize("size", [(24, 24), (30, 17), (17, 31), (50, 9)])
def test_pictures_of_another_size_are_scaled_as_prepare_scales_them(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    ours, was = pictures._decoded(tmp_path / "a.png", (3, 16, 16))
    theirs, _ = decode((tmp_path / "a.png").read_bytes(), 16)
    assert was == size
    assert np.array_equal(ours, theirs)


def test_of_another_shape_the_middle_is_taken(tmp_path: Path) -> None:
    """16 by 8 pixels of 20 by 12 are its middle 20 by 10: of three black lines two are seen, as 1.6."""
    pixels = np.full((12, 20, 3), 200, np.uint8)
    pixels[:3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ours, _ = pictures._decoded(tmp_path / "a.png", (3, 8, 16))
    assert ours.shape == (3, 8, 16)
    assert (ours[:, 3:] == 200).all()
    assert (ours[:, 0] < 40).all()
    assert (ours[:, 1] < 200).all()


def test_what_is_no_picture_is_one_line(tmp_path: Path) -> None:
    for name, content in (("a.png", b"text"), ("b.jpg", b"\xff\xd8\xff"), ("c.gif", b"GIF89a")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadArgument, match=f"{name}': it cannot be decoded "):
            pictures._decoded(tmp_path / name, None)
