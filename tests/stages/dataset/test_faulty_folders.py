"""Whatever a user's folder holds: each fault is a row with its path and what to do, and the rest is prepared."""

from __future__ import annotations

import csv
import os
import re
import shutil
import zipfile

import numpy as np
import pytest

from stages.common.runner import StageError, main
from stages.dataset.quality import images, read_manifest
from stages.prepare import prepare
from tests.stages.dataset.pictures import encoded, fill, picture
from tests.stages.dataset.planted import plant


def test_every_fault_is_a_row_with_a_reason(workspace):
    fill(workspace.raw)
    planted = plant(workspace.raw)
    rows = workspace.prepare()
    for path, words in planted.items():
        assert rows[path]["reason"].startswith(words), path
    left_out = {path for path, row in rows.items() if row["reason"]}
    assert left_out == {*planted, "cat/0.png"}  # of the image under two labels both copies
    assert len(rows) == 40 + 12
    assert sum(len(ids) for ids in workspace.ids().values()) == 39


def test_side_files_are_no_images_and_no_fault(workspace):
    fill(workspace.raw)
    (workspace.raw / "README.md").write_text("my pictures")
    (workspace.raw / "cat/.DS_Store").write_bytes(b"x")
    (workspace.raw / "cat/Thumbs.db").write_bytes(b"x")
    (workspace.raw / "cat/boxes.xml").write_text("<a/>")
    rows = workspace.prepare()
    assert len(rows) == 41
    assert rows["cat/boxes.xml"]["reason"] == "ignored: files named .xml hold no images; nothing to do"


def test_links_inside_the_folder_are_followed(workspace):
    fill(workspace.raw)
    (workspace.raw / "cat/link.png").symlink_to("1.png")
    assert workspace.prepare()["cat/link.png"]["reason"].startswith("repeated: the same image as cat/1.png")


def test_copies_of_one_label_are_left_out_but_one(workspace):
    fill(workspace.raw)
    for name in ("a.png", "b.png"):
        (workspace.raw / "cat" / name).write_bytes((workspace.raw / "cat/0.png").read_bytes())
    rows = workspace.prepare()
    assert not rows["cat/0.png"]["reason"]
    assert rows["cat/a.png"]["reason"].startswith("repeated: the same image as cat/0.png")
    assert rows["cat/b.png"]["reason"].startswith("repeated: the same image as cat/0.png")


def test_of_an_image_in_two_splits_the_test_copy_stays(workspace):
    fill(workspace.raw / "train")
    fill(workspace.raw / "test", images=5, first=100)
    (workspace.raw / "train/cat/leak.png").write_bytes((workspace.raw / "test/cat/100.png").read_bytes())
    rows = workspace.prepare()
    assert rows["train/cat/leak.png"]["reason"].startswith("two splits: the same image is in test as test/cat/100.png")
    assert not rows["test/cat/100.png"]["reason"]
    assert len(workspace.ids()["test"]) == 10


def test_nothing_usable_stops_and_names_what_was_found(workspace):
    (workspace.raw / "cat").mkdir()
    (workspace.raw / "cat/a.png").write_text("no")
    with pytest.raises(StageError, match=r"(?s)no image can be used.*cat/a\.png: not an image"):
        prepare()
    assert list(workspace.manifest()) == ["cat/a.png"]


def test_names_that_are_not_ascii(workspace):
    """More images than one process does alone: each notes what it is at."""
    fill(workspace.raw, ("Äpfel", "猫"), images=150)
    rows = workspace.prepare()
    assert len(rows) == 300
    assert not any(row["reason"] for row in rows.values())


def test_pictures_by_their_content_and_such_as_are_not_read_here(workspace):
    fill(workspace.raw)
    cat = workspace.raw / "cat"
    (cat / "photo.jpg_large").write_bytes(encoded(picture(80), "JPEG"))
    (cat / "2020.05.05 cat").write_bytes(encoded(picture(81)))
    os.mkfifo(workspace.raw / "pipe.xyz")
    (cat / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (workspace.raw / "beside.jpeg_large").write_bytes(encoded(picture(82), "JPEG"))
    rows = workspace.prepare()
    assert not rows["cat/photo.jpg_large"]["reason"]
    assert not rows["cat/2020.05.05 cat"]["reason"]
    assert rows["cat/IMG_1.HEIC"]["reason"].startswith("not an image: .HEIC is not read here; convert it")
    assert rows["beside.jpeg_large"]["reason"].startswith("no class:")


def test_what_was_prepared_in_part_by_a_killed_run_is_removed(workspace):
    fill(workspace.raw)
    (workspace.folder / "data/.prepared.99999.part/train").mkdir(parents=True)
    workspace.prepare()
    assert not list((workspace.folder / "data").glob(".prepared.*"))


@pytest.mark.parametrize(
    ("source", "path", "words"),
    [
        ("folder", "nowhere", "data.path is nowhere: there is no such folder"),
        ("folder", "data/raw", "holds no class folders"),
        ("csv", "data/raw", "one .csv file"),
        ("npz", "data/raw", "one .npz file"),
        ("sheets", "data/raw", "holds CLASS.png"),
    ],
)
def test_a_source_that_is_not_there_says_what_is_expected(workspace, source, path, words):
    workspace.set(source=source, path=path)
    with pytest.raises(StageError, match=words):
        prepare()


def test_a_full_disk_says_so_and_loses_nothing(workspace, monkeypatch, capsys):
    """/dev/full answers every write as a full disk does."""
    fill(workspace.raw)
    workspace.prepare()
    before = workspace.ids()
    fill(workspace.raw, images=2, first=50)
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("stages.dataset.decoding_pool.new_file", lambda _: (full, "full"))
    with pytest.raises(SystemExit):
        main(prepare)
    said = capsys.readouterr().err
    assert re.search(r"cannot write \.work/prepare/.*/full: No space left on device\. Mend that", said)
    assert workspace.ids() == before
    monkeypatch.undo()
    monkeypatch.chdir(workspace.folder)
    assert len(workspace.prepare()) == 44


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_at_the_end_keeps_what_was_prepared(workspace, monkeypatch, capsys):
    fill(workspace.raw)
    workspace.prepare()
    before = workspace.ids()
    fill(workspace.raw, images=2, first=50)

    monkeypatch.setattr("stages.prepare.csv.DictWriter", full)
    with pytest.raises(SystemExit):
        main(prepare)
    assert "cannot write data/manifest.csv: No space left on device. Mend that" in capsys.readouterr().err
    assert workspace.ids() == before
    assert not list((workspace.folder / "data").glob(".*"))


@pytest.fixture
def nobody(workspace):
    """Root may read everything: become somebody else for the length of a test."""
    if os.geteuid() != 0:
        yield lambda: None
        return
    for folder in (workspace.folder, *workspace.folder.parents):  # pytest's folders are for their owner alone
        if folder.stat().st_uid == 0 and len(folder.parts) > 2:
            folder.chmod(0o755)
    yield lambda: os.seteuid(65534)
    os.seteuid(0)


def test_no_permission_to_read(workspace, nobody):
    fill(workspace.raw)
    (workspace.raw / "cat/0.png").chmod(0)
    (workspace.raw / "cat/sub").mkdir(mode=0)
    for folder in ("", ".work", "data"):
        (workspace.folder / folder).mkdir(exist_ok=True)
        (workspace.folder / folder).chmod(0o777)
    nobody()
    rows = workspace.prepare()
    assert rows["cat/0.png"]["reason"] == "unreadable: no permission to read it; chmod +r it"
    assert rows["cat/sub"]["reason"] == "unreadable: no permission to list the folder; chmod +rx it"
    assert sum(len(ids) for ids in workspace.ids().values()) == 39


def test_no_permission_for_whole_folders(workspace, nobody):
    fill(workspace.raw / "train", images=12)
    fill(workspace.raw / "test", images=2, first=100)
    for folder in ("", ".work", "data"):
        (workspace.folder / folder).mkdir(exist_ok=True)
        (workspace.folder / folder).chmod(0o777)
    (workspace.raw / "test").chmod(0)
    nobody()
    assert workspace.prepare()["test"]["reason"] == "unreadable: no permission to list the folder; chmod +rx it"
    os.seteuid(0)
    workspace.raw.chmod(0)
    nobody()
    with pytest.raises(StageError, match=r"data\.path is data/raw: no permission to list it; chmod \+rx it"):
        prepare()


@pytest.mark.parametrize(("source", "name"), [("csv", "labels.csv"), ("npz", "set.npz")])
def test_no_permission_for_the_one_file(workspace, nobody, source, name):
    workspace.set(source=source)
    (workspace.raw / name).write_bytes(b"x")
    (workspace.raw / name).chmod(0)
    (workspace.folder / ".work").mkdir(mode=0o777)
    workspace.folder.chmod(0o777)
    (workspace.folder / ".work").chmod(0o777)
    nobody()
    with pytest.raises(StageError, match=rf"data/raw/{name}: no permission to read it; chmod \+r it"):
        prepare()


def table(workspace, text: str) -> None:
    workspace.set(source="csv")
    fill(workspace.raw / "pictures")
    (workspace.raw / "labels.csv").write_text(text)


def test_a_table_of_labels(workspace):
    names = [f"pictures/{label}/{i}.png,{label}" for label in ("cat", "dog") for i in range(20)]
    table(workspace, "path,label\n" + "\n".join(names))
    rows = workspace.prepare()
    assert len(rows) == 40
    assert rows["pictures/cat/3.png"]["label"] == "cat"
    assert not any(row["reason"] for row in rows.values())


def test_faults_in_a_table(workspace):
    good = [f"pictures/{label}/{i}.png,{label}," for label in ("cat", "dog") for i in range(9)]
    bad = [
        "pictures/ghost.png,ghost,",
        "pictures/cat/10.png,,",
        "pictures/cat/11.png,cat,probe",
        "../outside.png,cat,",
        ",cat,",
        "pictures/cat/0.png,cat,",
        "pictures/cat/1.png,dog,",
    ]
    table(workspace, "path,label,split\n" + "\n".join(good + bad))
    prepare()
    with open("data/manifest.csv", newline="", encoding="utf-8") as file:
        reasons = sorted(row["reason"] for row in csv.DictReader(file) if row["reason"])
    assert [reason.partition(":")[0] for reason in reasons] == [
        "link", "listed twice", "missing", "missing", "no label", "split", "two labels", "two labels",
    ]  # fmt: skip
    assert "split: probe is none of train, val, test; correct it, or leave it empty" in reasons
    assert "listed twice: the table has the row again; remove one" in reasons
    judged = images(read_manifest("data/manifest.csv"))
    assert judged["placement"].notna().sum() == 4  # link, listed twice, no label, split
    assert judged["decoding"].notna().sum() == 2


@pytest.mark.parametrize("rows", ["pictures/cat/0.png,cat, red", "pictures/cat/0.png,cat,train"])
def test_a_cell_too_many_is_no_class_and_no_split(workspace, rows):
    """The header names two columns: what stands in a third one would be lost without a word."""
    good = [
        f"pictures/{label}/{i}.png,{label}," for label in ("cat", "dog") for i in range(1, 9)
    ]  # an empty one is none
    table(workspace, "path,label\n" + "\n".join([*good, rows]))
    prepare()
    judged = images(read_manifest("data/manifest.csv"))
    assert judged["placement"].notna().sum() == 1
    assert judged["placement"].dropna().iloc[0].startswith("split: the row has more cells than the table has columns")


def test_a_column_that_is_there_twice_is_refused(workspace):
    table(workspace, "path,label,Label\npictures/cat/0.png,cat,dog\n")
    with pytest.raises(StageError, match="has the column label 2 times: name each once"):
        prepare()


def test_a_pipe_and_a_folder_in_a_table(workspace):
    fill(workspace.raw, ("a", "b"))
    os.mkfifo(workspace.raw / "pipe.png")
    table(workspace, "path,label\na/0.png,a\npipe.png,a\na,a\n")
    rows = workspace.prepare()
    assert rows["pipe.png"]["reason"].startswith("unreadable: a folder or a device")
    assert rows["a"]["reason"].startswith("unreadable: a folder or a device")


def test_columns_of_a_table_in_capitals(workspace):
    fill(workspace.raw, ("a", "b"))
    table(workspace, "Path,Label,Split\na/0.png,a,train\na/1.png,a,test\nb/0.png,b,val\n")
    assert [row["split"] for row in workspace.prepare().values()] == ["train", "test", "val"]


def test_a_link_to_itself_in_a_table(workspace):
    good = [f"pictures/{label}/{i}.png,{label}" for label in ("cat", "dog") for i in range(20)]
    table(workspace, "path,label\n" + "\n".join([*good, "pictures/loop.png,cat"]))
    (workspace.raw / "pictures/loop.png").symlink_to("loop.png")
    assert workspace.prepare()["pictures/loop.png"]["reason"].startswith("link: ")


def test_a_folder_beside_the_splits(workspace):
    for name in ("Train", "test", "unlabeled"):
        fill(workspace.raw / name)
    with pytest.raises(StageError, match="beside Train and test lies unlabeled, which is no split"):
        prepare()


def test_a_class_called_train(workspace):
    fill(workspace.raw, classes=["train", "tram"])
    assert {row["label"] for row in workspace.prepare().values()} == {"train", "tram"}


def no_memory(*_, **__):
    raise MemoryError


def test_no_memory_now_may_be_memory_later(workspace, monkeypatch):
    fill(workspace.raw, images=9)
    shutil.copy(workspace.raw / "cat/0.png", workspace.raw / "cat/copy.png")
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.interpolate", no_memory)
        with pytest.raises(StageError, match=r"cat/copy\.png: too large: it does not fit into memory"):
            prepare()
    assert [path for path, row in workspace.prepare().items() if row["reason"]] == ["cat/copy.png"]


def test_a_table_without_labels(workspace):
    table(workspace, "path,class\na,b\n")
    with pytest.raises(StageError, match="no column label"):
        prepare()


def test_a_table_that_is_none(workspace):
    table(workspace, "path,label\npictures/cat/0.png,cat\n" + "x" * 200_000 + ",cat\n")
    with pytest.raises(StageError, match=r"labels\.csv, line 3: field larger than field limit.*mend the line"):
        prepare()


def test_an_npz_that_broke_off(workspace):
    rng = np.random.default_rng(0)
    file = workspace.raw / "set.npz"
    np.savez_compressed(file, x=rng.integers(0, 256, (40, 32, 32), dtype=np.uint8), y=np.arange(40) % 2)
    content = bytearray(file.read_bytes())
    content[5_000:20_000] = bytes(15_000)
    file.write_bytes(content)
    workspace.set(source="npz")
    with pytest.raises(StageError, match=r"data/raw/set\.npz is broken: .*; write it again"):
        prepare()


METHODS = {"lzma": zipfile.ZIP_LZMA, "bzip2": zipfile.ZIP_BZIP2}


@pytest.mark.parametrize("fault", [*METHODS, "password", "method", "folder"])
def test_an_archive_that_python_cannot_read(workspace, fault):
    """Bytes that the decoder refuses; a password; a method of tomorrow; arrays one folder down."""
    file = workspace.raw / "set.npz"
    with zipfile.ZipFile(file, "w", METHODS.get(fault, zipfile.ZIP_DEFLATED)) as archive:
        for name, array in {"x": np.zeros((40, 32, 32), np.uint8), "y": np.arange(40) % 2}.items():
            with archive.open(f"in/{name}.npy" if fault == "folder" else f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array)
    content = bytearray(file.read_bytes())
    entries = [match.start() for match in re.finditer(rb"PK\x01\x02", content)]
    if fault in METHODS:
        content[50:80] = b"\xff" * 30
    if fault == "password":
        for entry in entries:
            content[entry + 8] |= 1
    if fault == "method":
        for entry in entries:
            content[entry + 10] = 90
    file.write_bytes(content)
    workspace.set(source="npz")
    with pytest.raises(StageError, match=r"is broken: .*; write it again|holds in/x, in/y: expected x and y"):
        prepare()


@pytest.mark.parametrize("content", [b"no", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDX" + bytes(30)])
def test_a_sheet_that_is_no_picture(workspace, content):
    workspace.set(source="sheets")
    (workspace.raw / "cat.png").write_bytes(content)
    with pytest.raises(StageError, match=r"data/raw/cat\.png cannot be read as an image"):
        prepare()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((4, 8, 8, 3), np.float32), "y": np.arange(4)}, "x is float32"),
        ({"x": np.zeros((4, 8, 8), np.uint8), "y": np.arange(3)}, "x has 4 images, and there are 3 labels"),
        ({"pictures": np.zeros((4, 8, 8), np.uint8)}, "holds pictures: expected x and y"),
        (
            {"x": np.zeros((4, 8, 8), np.uint8), "y": np.arange(4), "x_test": np.zeros((4, 8, 8), np.uint8)},
            "x_test would be left out: expected labels beside it",
        ),
        ({"x": np.zeros((4, 8), np.uint8), "y": np.arange(4)}, r"x is uint8 \(4, 8\)"),
        (
            {"x": np.zeros((4, 8, 8), np.uint8), "y": np.arange(4), "classes": ["a"]},
            "labels go from 0 to 3, and classes",
        ),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0, np.nan, 1])}, "y is nan at 1: expected whole numbers"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": np.array([0, 1, np.inf])}, "y is inf at 2: expected whole numbers"),
        ({"x": np.zeros((3, 8, 8), np.uint8), "y": [b"cat", b"d\xff", b"e"]}, "y holds bytes that are no UTF-8"),
        (
            {"x": np.zeros((2, 8, 8), np.uint8), "y": np.arange(2), "classes": np.eye(2)},
            r"classes has the shape \(2, 2\)",
        ),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.arange(2), "classes": np.array("ab")}, r"classes has the shape"),
    ],
)
def test_faults_in_arrays(workspace, arrays, words):
    np.savez(workspace.raw / "set.npz", **arrays)
    workspace.set(source="npz")
    with pytest.raises(StageError, match=words):
        prepare()
