"""The six sets of the paper, in miniature: the real layouts and archives, from a real server that breaks off."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.common.runner import StageError
from stages.dataset import official
from stages.dataset.official import CALTECH256, CIFAR10, CIFAR100, CUB200, DOGS, DTD, Archive
from tests.stages.dataset.pictures import encoded, picture


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed), "JPEG"))


def small_dtd(root: Path) -> None:
    for seed, (kind, n) in enumerate((kind, n) for kind in ("banded", "dotted") for n in range(9)):
        save(root / f"dtd/images/{kind}/{kind}_{n:04}.jpg", seed)
    (root / "dtd/labels").mkdir()
    for part, numbers in (("train1", (0, 1, 2)), ("val1", (3, 4)), ("test1", (5, 6, 7, 8))):
        lines = [f"{kind}/{kind}_{n:04}.jpg\n" for kind in ("banded", "dotted") for n in numbers]
        (root / f"dtd/labels/{part}.txt").write_text("".join(lines))


def small_dogs(root: Path) -> None:
    from scipy.io import savemat

    names = [
        f"n0208{k}-{breed}/n0208{k}_{n}.jpg" for k, breed in enumerate(("Chow", "Saint-Bernard")) for n in range(5)
    ]
    for seed, name in enumerate(names):
        save(root / "Images" / name, seed)
    for part, chosen in (("train", names[:3] + names[5:8]), ("test", names[3:5] + names[8:])):
        cells = np.empty((len(chosen), 1), object)
        cells[:, 0] = chosen
        savemat(root / f"{part}_list.mat", {"file_list": cells})


def small_cub(root: Path) -> None:
    names = [f"00{k}.{bird}/{bird}_{n}.jpg" for k, bird in ((1, "Sooty_Albatross"), (2, "Crow")) for n in range(4)]
    for seed, name in enumerate(names):
        save(root / "CUB_200_2011/images" / name, seed)
    numbered = list(enumerate(names, 1))
    (root / "CUB_200_2011/images.txt").write_text("".join(f"{i} {name}\n" for i, name in numbered))
    (root / "CUB_200_2011/train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i, _ in numbered))


def small_caltech(root: Path) -> None:
    for k, name in ((1, "ak47"), (2, "yo-yo")):
        for n in range(1, 71):
            save(root / f"256_ObjectCategories/00{k}.{name}/00{k}_{n:04}.jpg", 100 * k + n)
    (root / "256_ObjectCategories/002.yo-yo/RENAME2").write_text("stray")


SMALL = {
    "dtd": (small_dtd, replace(DTD, classes=2, counts={"train": 10, "test": 8})),
    "dogs": (small_dogs, replace(DOGS, classes=2, counts={"train": 6, "test": 4})),
    "cub200": (small_cub, replace(CUB200, classes=2, counts={"train": 4, "test": 4})),
    "caltech256": (small_caltech, replace(CALTECH256, classes=2, counts={"train": 120, "test": 20})),
}


@pytest.fixture(params=SMALL)
def name(request, monkeypatch, tmp_path) -> str:
    """A set's name, its expectations shrunk to the miniature, and a folder of one's own to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOLORA_WORK", raising=False)
    monkeypatch.setattr(official, request.param.upper(), SMALL[request.param][1])
    return request.param


def find(name: str, path: Path) -> list:
    return list(getattr(official, name)(path))


def test_where_it_lies(name, tmp_path):
    SMALL[name][0](tmp_path / "here")
    found = find(name, tmp_path / "here")
    assert len(found) == sum(SMALL[name][1].counts.values())
    assert all(Path(f.content).is_file() for f in found)
    assert len({f.path for f in found}) == len(found)  # nothing twice: the released Caltech-256 list repeats images
    train, test = ({f.path for f in found if f.split == split} for split in ("train", "test"))
    assert not train & test


def test_half_a_set_is_refused(name, tmp_path):
    SMALL[name][0](tmp_path / "here")
    setattr(official, name.upper(), replace(getattr(official, name.upper()), classes=3))
    with pytest.raises(StageError, match=f"{name} is not whole: it has 2 classes"):
        find(name, tmp_path / "here")


def test_labels_and_splits_are_the_authors(tmp_path, monkeypatch):
    for key, (make, published) in SMALL.items():
        make(tmp_path / key)
        monkeypatch.setattr(official, key.upper(), published)
    dogs, cub = find("dogs", tmp_path / "dogs"), find("cub200", tmp_path / "cub200")
    assert {f.label for f in dogs} == {"Chow", "Saint-Bernard"}
    assert {(f.path, f.split) for f in dogs[:1]} == {("n02080-Chow/n02080_0.jpg", "train")}
    assert {f.label for f in cub} == {"Sooty_Albatross", "Crow"}
    assert [f.split for f in cub] == ["train", "test"] * 4


def test_dtd_is_torchvisions(tmp_path, monkeypatch):
    """The oracle reads the same folder: training and validation part of split 1 together, test part as it is."""
    from torchvision.datasets import DTD as Theirs

    small_dtd(tmp_path / "dtd")
    monkeypatch.setattr(official, "DTD", SMALL["dtd"][1])
    found = find("dtd", tmp_path / "dtd")
    theirs = {split: Theirs(tmp_path, split) for split in ("train", "val", "test")}
    for split, parts in (("train", ("train", "val")), ("test", ("test",))):
        expected = {str(file) for part in parts for file in theirs[part]._image_files}
        assert {f.content for f in found if f.split == split} == expected


def test_caltech_is_torchvisions_and_has_sixty_of_each(tmp_path, monkeypatch):
    from torchvision.datasets import Caltech256 as Theirs

    small_caltech(tmp_path / "caltech256")
    monkeypatch.setattr(official, "CALTECH256", SMALL["caltech256"][1])
    found = find("caltech256", tmp_path / "caltech256")
    assert len(found) == len(Theirs(tmp_path))
    assert sorted({f.label for f in found}) == ["ak47", "yo-yo"]
    for label in ("ak47", "yo-yo"):
        assert sum(f.label == label and f.split == "train" for f in found) == 60


def test_urls_and_checksums_are_torchvisions():
    import inspect

    from torchvision import datasets

    for ours, theirs in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        assert (ours.archives[0].url, ours.archives[0].digest) == (theirs.url, theirs.tgz_md5)
    assert (DTD.archives[0].url, DTD.archives[0].digest) == (datasets.DTD._URL, datasets.DTD._MD5)
    source = inspect.getsource(datasets.Caltech256)
    assert CALTECH256.archives[0].url in source
    assert CALTECH256.archives[0].digest in source


# --- from a server ----------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file with Range; breaks off the first answer half-way."""

    content = b""
    ranges: tuple[str | None, ...] = ()

    def do_GET(self):
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        type(self).ranges += (self.headers.get("Range"),)
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.send_header("ETag", '"one"')
        self.end_headers()
        rest = self.content[begin:]
        self.wfile.write(rest[: len(rest) // 2] if len(self.ranges) == 1 else rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """DTD in miniature behind a URL; the archive's digest is right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOLORA_WORK", raising=False)
    small_dtd(tmp_path / "source")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(tmp_path / "source/dtd", "dtd")
    handler = type("Handler", (Server,), {"content": buffer.getvalue()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/dtd-r1.0.1.tar.gz"
        archive = Archive(url, "md5", hashlib.md5(handler.content).hexdigest())
        monkeypatch.setattr(official, "DTD", replace(SMALL["dtd"][1], archives=(archive,)))
        yield handler
        running.shutdown()


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / "raw").mkdir()
    found = find("dtd", tmp_path / "raw")
    assert len(found) == 18
    assert server.ranges == (None, f"bytes={len(server.content) // 2}-")
    assert Path(found[0].content).resolve().is_relative_to(tmp_path / ".work/downloads/dtd")
    find("dtd", tmp_path / "raw")
    assert len(server.ranges) == 2  # once downloaded and unpacked, never again


def test_what_a_kill_left_half_unpacked_is_in_nobodys_way(server, tmp_path):
    (tmp_path / "raw").mkdir()
    half = tmp_path / ".work/downloads/.dtd.part"
    half.mkdir(parents=True)
    (half / "half").write_text("")
    assert len(find("dtd", tmp_path / "raw")) == 18
    assert not half.exists()
    assert not (tmp_path / ".work/downloads/dtd/half").exists()


def test_another_archive_than_the_published_is_refused(server, tmp_path, monkeypatch):
    wrong = replace(official.DTD, archives=(replace(official.DTD.archives[0], digest="0" * 32),))
    monkeypatch.setattr(official, "DTD", wrong)
    with pytest.raises(StageError, match=r"is not the published dtd-r1\.0\.1\.tar\.gz: its md5 is .*expected 000"):
        find("dtd", tmp_path)
    assert not (tmp_path / ".work/downloads/dtd").exists()


def test_an_archive_in_data_path_needs_no_network(server, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dtd-r1.0.1.tar.gz").write_bytes(server.content)
    assert len(find("dtd", tmp_path / "raw")) == 18
    assert server.ranges == ()
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["dtd-r1.0.1.tar.gz"]  # a dependency: left as it was


def test_without_network_it_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autolora.common.downloads.ATTEMPTS", 1)
    archive = Archive("http://127.0.0.1:9/dtd-r1.0.1.tar.gz", "md5", "0" * 32)
    monkeypatch.setattr(official, "DTD", replace(DTD, archives=(archive,)))
    with pytest.raises(StageError, match=r"(?s)dtd is not in .*cannot be downloaded.*Put dtd-r1\.0\.1\.tar\.gz there"):
        find("dtd", tmp_path)


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def small_cifar(root: Path, monkeypatch) -> np.ndarray:
    """The pickles of CIFAR-10 with ten images each, and torchvision told their checksums."""
    from torchvision.datasets import CIFAR10 as Theirs

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)

    def write(file: str, value) -> tuple[str, str]:
        (folder / file).write_bytes(pickle.dumps(value))
        return file, hashlib.md5((folder / file).read_bytes()).hexdigest()

    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    sums = [
        write(file, {"data": images[10 * i : 10 * i + 10].reshape(10, -1), "labels": list(range(10))})
        for i, file in enumerate(names)
    ]
    file, digest = write("batches.meta", {"label_names": [f"kind{i}" for i in range(10)]})
    monkeypatch.setattr(Theirs, "train_list", [list(s) for s in sums[:5]])
    monkeypatch.setattr(Theirs, "test_list", [list(sums[5])])
    monkeypatch.setattr(Theirs, "meta", {"filename": file, "key": "label_names", "md5": digest})
    monkeypatch.setattr(official, "CIFAR10", replace(CIFAR10, counts={"train": 50, "test": 10}))
    return images


def test_cifar_is_read_by_torchvision(tmp_path, monkeypatch):
    images = small_cifar(tmp_path, monkeypatch)
    found = find("cifar10", tmp_path)
    assert [f.split for f in found] == ["train"] * 50 + ["test"] * 10
    assert np.array_equal(np.stack([f.content for f in found]).transpose(0, 3, 1, 2), images)
    assert [f.label for f in found[:3]] == ["kind0", "kind1", "kind2"]
    assert (found[1].path, found[-1].path) == ("train#1", "test#9")


def test_a_cifar_file_that_was_changed_is_refused(tmp_path, monkeypatch):
    small_cifar(tmp_path, monkeypatch)
    with open(tmp_path / "cifar-10-batches-py/data_batch_3", "ab") as file:
        file.write(b"x")
    with pytest.raises(StageError, match="cifar-10-batches-py: "):
        find("cifar10", tmp_path)
