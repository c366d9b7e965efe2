"""prepare as a whole: the files that training reads, the same bytes every time, and no image ever moves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.transforms import v2

from autolora.data.ragged import rectangles
from stages.common.runner import StageError
from stages.dataset.arrays import tiles
from stages.dataset.decode import content_sha256
from tests.stages.dataset.pictures import fill, picture


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_contract_of_the_files(workspace):
    fill(workspace.raw, images=30)
    rows = workspace.prepare()
    classes = json.loads(Path("data/prepared/classes.json").read_text())
    assert classes == ["cat", "dog"]
    by_id = {row["sha256"]: row for row in rows.values()}
    for split in ("train", "val", "test"):
        images, labels, ids = (workspace.array(split, name) for name in ("images", "labels", "ids"))
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        assert ids.dtype == "S64"
        assert isinstance(images, np.memmap)
        assert len(images) == len(labels) == len(ids) > 0
        assert json.loads(Path(f"data/prepared/{split}/classes.json").read_text()) == classes
        for image, label, name in zip(images, labels, ids):
            row = by_id[name.decode()]
            assert (row["split"], row["label"]) == (split, classes[label])
            content = (workspace.raw / row["path"]).read_bytes()
            assert content_sha256(content) == row["sha256"]
            assert float(row["mean"]) == pytest.approx(image.mean(), abs=0.01)
            assert int(row["bytes"]) == len(content)


def test_the_same_images_are_the_same_bytes(workspace):
    """Decoded anew or kept, by one process or several, after a failed run or not."""
    fill(workspace.raw, images=150)
    workspace.prepare()
    first = tree(workspace.folder / "data/prepared") | {"m": Path("data/manifest.csv").read_bytes()}
    workspace.prepare()
    assert tree(workspace.folder / "data/prepared") | {"m": Path("data/manifest.csv").read_bytes()} == first
    subprocess.run(["rm", "-r", ".work"], check=True)
    workspace.prepare()
    assert tree(workspace.folder / "data/prepared") | {"m": Path("data/manifest.csv").read_bytes()} == first


def test_no_image_moves_when_others_come(workspace):
    fill(workspace.raw, images=40)
    before = {row["sha256"]: row["split"] for row in workspace.prepare().values()}
    fill(workspace.raw, images=25, first=40)
    fill(workspace.raw, classes=["emu"], images=30, first=800)
    (workspace.raw / "cat/0.png").rename(workspace.raw / "cat/zebra.png")
    after = {row["sha256"]: row["split"] for row in workspace.prepare().values()}
    assert len(after) == 80 + 50 + 30
    assert before.items() <= after.items()
    assert json.loads(Path("reports/timing/prepare.json").read_text())["decoded"] == 80


@pytest.mark.parametrize(
    "added", ["pictures/cat/70.png,cat,test", "pictures/ghost.png,cat,test", "pictures/cat/71.png,cat,val"]
)
def test_no_image_of_a_table_moves_when_one_with_a_split_comes(workspace, added):
    workspace.set(source="csv")
    fill(workspace.raw / "pictures", images=75)
    names = [
        f"pictures/{label}/{i}.png,{label},{'train' if i % 5 == 0 else ''}"
        for label in ("cat", "dog")
        for i in range(60)
    ]
    before, after = [], []
    for found, rows in ((before, names), (after, [*names, added])):
        (workspace.raw / "labels.csv").write_text("path,label,split\n" + "\n".join(rows))
        found.append({row["sha256"]: row["split"] for row in workspace.prepare().values() if not row["reason"]})
    assert before[0].items() <= after[0].items()
    assert {"train", "val", "test"} == set(before[0].values())


def test_training_images_are_stored_larger_and_whole(workspace):
    """Training draws its crops from all of a long image; validation and test images are the middle, as torchvision's
    Resize and CenterCrop make them."""
    fill(workspace.raw, images=30)
    for file in [*workspace.raw.glob("cat/*.png")][::2]:
        picture(int(file.stem) + 5000, 64, 120).save(file)
    workspace.set(image_size=24, stored_size=32)
    rows = {row["sha256"]: row for row in workspace.prepare().values()}
    shapes, flat = workspace.array("train", "shapes"), workspace.array("train", "images")
    assert isinstance(flat, np.memmap)
    whole = rectangles(flat, shapes)
    steps = v2.Compose([v2.Resize(32), v2.PILToTensor()])
    for index, name in enumerate(workspace.ids()["train"]):
        expected = steps(Image.open(workspace.raw / rows[name]["path"]))
        assert shapes[index].tolist() == list(expected.shape[1:])
        assert np.abs(whole[index : index + 1].reshape(expected.shape).astype(int) - expected.numpy()).max() <= 1
    assert {tuple(s) for s in shapes.tolist()} == {(32, 38), (60, 32)}
    steps = v2.Compose([v2.Resize(32), v2.CenterCrop(24), v2.PILToTensor()])
    for name, image in zip(workspace.ids()["test"], workspace.array("test", "images"), strict=True):
        expected = steps(Image.open(workspace.raw / rows[name]["path"]))
        assert np.abs(image.astype(int) - expected.numpy()).max() <= 1  # torch resizes, up to a rounding as Pillow


def test_all_images_of_one_shape_or_not_are_read_by_training(workspace):
    from stages.finetune import read_split

    fill(workspace.raw, images=30)
    workspace.prepare()
    assert isinstance(read_split("train")[0], np.memmap)
    assert not Path("data/prepared/train/shapes.npy").exists()
    workspace.set(image_size=24, stored_size=32)
    workspace.prepare()
    images, labels = read_split("train")
    assert images.shape == (len(labels), 3, 32, 32)
    assert isinstance(images.flat, np.memmap)
    assert isinstance(read_split("val")[0], np.memmap)


def test_stored_smaller_than_used_is_refused(workspace):
    fill(workspace.raw)
    workspace.set(image_size=32, stored_size=16)
    with pytest.raises(StageError, match=r"data\.stored_size is 16.*at least data\.image_size \(32\)"):
        workspace.prepare()


def test_digits_are_scikit_learns(workspace):
    from sklearn.datasets import load_digits

    workspace.set(source="digits", image_size=16)
    rows = workspace.prepare()
    theirs = load_digits()
    assert len(rows) == len(theirs.target)
    assert [row["label"] for row in rows.values()] == [str(t) for t in theirs.target]
    grey = np.round(theirs.images * 255 / 16).astype(np.uint8)
    names = {content_sha256(image): image for image in grey}
    test, ids = workspace.array("test", "images"), workspace.ids()["test"]
    enlarged = [np.asarray(Image.fromarray(names[i]).resize((16, 16), Image.Resampling.BILINEAR)) for i in ids]
    assert np.array_equal(test, np.stack([enlarged] * 3, 1))


def test_split_folders_are_kept_and_classes_may_be_called_train(workspace):
    fill(workspace.raw / "train", images=30)
    fill(workspace.raw / "valid", images=5, first=100)
    fill(workspace.raw / "test", images=6, first=200)
    rows = workspace.prepare()
    assert {(p.split("/")[0], row["split"]) for p, row in rows.items()} == {
        ("train", "train"), ("valid", "val"), ("test", "test"),
    }  # fmt: skip
    subprocess.run(["rm", "-r", str(workspace.raw)], check=True)
    fill(workspace.raw, classes=["train", "plane"])
    assert {row["label"] for row in workspace.prepare().values()} == {"train", "plane"}


@pytest.mark.parametrize("layout", ["grey", "last", "first"])
def test_arrays_in_any_layout(workspace, layout):
    images = np.stack([np.asarray(picture(i, 32, 32)) for i in range(60)])
    labels = np.arange(60) % 2
    shown = {"grey": images[..., 0], "last": images, "first": images.transpose(0, 3, 1, 2)}[layout]
    np.savez_compressed(workspace.raw / "set.npz", x=np.ascontiguousarray(shown), y=labels, classes=["a", "b"])
    workspace.set(source="npz")
    rows = workspace.prepare()
    assert rows["x#5"]["label"] == "b"
    numbers = {row["sha256"]: int(path[2:]) for path, row in rows.items()}
    expected = images if layout != "grey" else np.stack([images[..., 0]] * 3, -1)
    for name, image in zip(workspace.ids()["train"], workspace.array("train", "images")):
        assert np.array_equal(image.transpose(1, 2, 0), expected[numbers[name]])


def test_arrays_with_their_own_test_part(workspace):
    rng = np.random.default_rng(0)
    arrays = {
        f"{s}_images": rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for s, n in (("train", 80), ("test", 20))
    }
    arrays |= {"train_labels": np.arange(80)[:, None] % 2, "test_labels": np.arange(20)[:, None] % 2}
    np.savez(workspace.raw / "set.npz", **arrays)
    workspace.set(source="npz", image_size=16)
    rows = workspace.prepare()
    assert sum(row["split"] == "test" for row in rows.values()) == 20
    assert all(path.startswith("test_images#") for path, row in rows.items() if row["split"] == "test")


@pytest.mark.parametrize("labels", [np.arange(60) % 2.0, np.array([b"a", b"b"])[np.arange(60) % 2]])
def test_labels_as_other_programs_write_them(workspace, labels):
    """Whole numbers as floats, and names as bytes."""
    x = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(workspace.raw / "set.npz", x=x, y=labels, classes=["a", "b"])
    workspace.set(source="npz", image_size=8)
    workspace.prepare()
    assert json.loads(Path("data/prepared/classes.json").read_text()) == ["a", "b"]


def test_classes_that_are_numbers_are_in_order(workspace):
    x = np.random.default_rng(0).integers(0, 256, (240, 8, 8), dtype=np.uint8)
    np.savez(workspace.raw / "set.npz", x=x, y=np.arange(240) % 12)
    workspace.set(source="npz", image_size=8)
    workspace.prepare()
    assert json.loads(Path("data/prepared/classes.json").read_text()) == [str(i) for i in range(12)]


def test_a_sheet_is_cut_into_its_tiles_row_by_row(workspace):
    for split, count in (("train", 60), ("test", 12)):
        for number, label in enumerate(("cat", "dog")):
            grid = [np.asarray(picture(1000 * number + len(split) * 100 + i, 32, 32)) for i in range(count)]
            rows = [np.concatenate(grid[at : at + 6], 1) for at in range(0, count, 6)]
            (workspace.raw / split).mkdir(exist_ok=True)
            Image.fromarray(np.concatenate(rows)).save(workspace.raw / split / f"{label}.png")
    workspace.set(source="sheets")
    rows = workspace.prepare()
    assert len(rows) == 144
    row = rows["test/dog.png#7"]
    assert (row["label"], row["split"]) == ("dog", "test")
    assert row["sha256"] == content_sha256(np.asarray(picture(1000 + 407, 32, 32)))


def test_sheets_are_real_cifar(workspace, shared):
    """The tiles of a sheet are the images of the same class that an .npz of CIFAR-10 test images holds."""
    evaluation = np.load(shared / "data/cifar10-eval500.npz")
    names = sorted(p.stem for p in (shared / "data/cifar10/test").glob("*.png"))
    shown = {tile.tobytes() for tile in tiles(shared / "data/cifar10/test/cat.png")}
    assert len(shown) == 100
    cats = evaluation["x"][evaluation["y"] == names.index("cat")]
    others = evaluation["x"][evaluation["y"] != names.index("cat")]
    assert not [1 for image in others if image.tobytes() in shown]
    assert [image for image in cats if image.tobytes() in shown]
    workspace.set(source="sheets", path=str(shared / "data/cifar100-20"))
    rows = workspace.prepare()
    assert len(rows) == 12_000
    assert len(workspace.ids()["test"]) == 2_000
    assert rows["test/train.png#3"]["label"] == "train"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path, root):
    """Ten times the images, 280 MB of pixels more, and hardly more memory: the manifest's rows are all that is kept."""
    few, many = (_peak(tmp_path / str(n), root, n) for n in (2_000, 20_000))
    assert many - few < 80 * 2**20


def _peak(folder: Path, root: Path, n: int) -> int:
    """Bytes that prepare takes for n images in a process of its own."""
    (folder / "data/raw").mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (n, 72, 72, 3), dtype=np.uint8)
    np.savez(folder / "data/raw/set.npz", x=x, y=np.arange(n) % 4)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["data"] |= {"source": "npz", "image_size": 72}
    params["backbone"]["weights"] = None
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_bytes((root / "dvc.yaml").read_bytes())
    code = "from stages.prepare import prepare; prepare(); print(open('/proc/self/status').read())"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout.partition("VmHWM:")[2].split()[0]) * 1024
