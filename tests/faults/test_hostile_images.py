"""Names and files that somebody chose with intent: HTML in the Data Docs, formulas in a table, bombs, PostScript."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from stages.common.errors import StageError
from stages.dataset.cells import from_cell, in_cell
from stages.dataset.decode import BadImage, decode
from stages.dataset.quality import read_manifest
from stages.prepare import prepare
from stages.validate import validate
from tests.stages.dataset.conftest import Workspace
from tests.stages.dataset.pictures import encoded, fill, picture

TAG = "<img src=x onerror=alert(1)>"


@pytest.fixture
def workspace(tmp_path, root, monkeypatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOLORA_WORK", raising=False)
    return Workspace(tmp_path, root)


def test_a_tag_in_a_name_is_text_in_the_data_docs(workspace):
    """As a class and as a file, where it fails and where it is only named in another's reason."""
    fill(workspace.raw, classes=("cat", TAG))
    first = (workspace.raw / TAG / "0.png").read_bytes()
    (workspace.raw / TAG / f"{TAG}.png").write_bytes(b"no picture")
    (workspace.raw / TAG / f"a{TAG}.png").write_bytes(encoded(picture(77)))
    (workspace.raw / "cat" / "same.png").write_bytes((workspace.raw / TAG / f"a{TAG}.png").read_bytes())
    (workspace.raw / TAG / "z.png").write_bytes(first)
    (workspace.raw / f"empty {TAG}").mkdir()
    workspace.set(on_bad_image="skip")
    prepare()
    validate()
    pages = [page.read_text(encoding="utf-8") for page in Path("reports/data_docs").rglob("*.html")]
    assert pages
    assert not [page for page in pages if "<img src=x" in page]
    assert any("&lt;img src=x" in page for page in pages)
    quality = json.loads(Path("data/quality.json").read_text(encoding="utf-8"))
    said = json.dumps(quality, ensure_ascii=False)
    assert f"empty {TAG}" in quality["checks"]["declared_classes"]["examples"]  # the record has the name as it is
    assert "&lt;" not in said


FORMULAS = ['=HYPERLINK("http://x","y")', "+1+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3", "'=1", "plain", "-1", "", "a=b"]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_cell_is_no_formula_and_gives_the_name_back(name):
    assert not in_cell(name).startswith(("=", "+", "@", "-2"))
    assert from_cell(in_cell(name)) == name


def test_no_table_holds_a_formula(workspace):
    label = "=1+1"
    fill(workspace.raw, classes=("cat", label))
    (workspace.raw / "cat" / "@SUM(A1).png").write_bytes(b"no picture")
    workspace.set(on_bad_image="skip")
    prepare()
    validate()
    for table in ("data/manifest.csv", "reports/data_docs/offending.csv"):
        with open(table, newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert cells
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    manifest = read_manifest("data/manifest.csv")
    assert set(manifest["label"]) == {"cat", label}
    assert json.loads(Path("data/prepared/classes.json").read_text()) == [label, "cat"]
    assert json.loads(Path("data/quality.json").read_text())["classes"] == 2


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
(ran) (w) file
"""


@pytest.mark.parametrize("source", ["sheets", "folder"])
def test_postscript_called_png_starts_nothing(workspace, monkeypatch, source):
    """A `gs` that leaves a trace stands first on the path."""
    trace, programs = workspace.folder / "ran", workspace.folder / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # Pillow looks for it once
    folder = workspace.raw if source == "sheets" else workspace.raw / "cat"
    folder.mkdir(exist_ok=True)
    (folder / "cat.png").write_bytes(POSTSCRIPT)
    workspace.set(source=source)
    with pytest.raises(StageError):
        prepare()
    assert not trace.exists()


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def packed(size: int) -> bytes:
    """So many zeros, without ever holding them."""
    packer, found = zlib.compressobj(9), b""
    for _ in range(size // 2**20):
        found += packer.compress(bytes(2**20))
    return found + packer.compress(bytes(size % 2**20)) + packer.flush()


def png(side: int, depth: int, beside: bytes = b"") -> bytes:
    """A grey square, all black."""
    header = side.to_bytes(4, "big") * 2 + bytes([depth, 0, 0, 0, 0])
    pixels = packed(side * (1 + side * depth // 8))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + beside + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BOMBS = {
    "beyond Pillow's limit": lambda: png(14_000, 8),
    "below it": lambda: png(12_000, 16),
    "a comment": lambda: png(32, 8, chunk(b"zTXt", b"comment\0\0" + packed(2**29))),
    "a colour profile": lambda: png(32, 8, chunk(b"iCCP", b"profile\0\0" + packed(2**29))),
}
MEASURED = """
import resource, sys
from pathlib import Path
from stages.dataset.decode import BadImage, decode
content = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(content, 32)
    print("used")
except BadImage as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", BOMBS)
def test_what_unfolds_a_thousand_times_does_not_fill_the_memory(tmp_path, root, kind):
    """In a process of its own, whose memory is measured: half a megabyte, half a gigabyte if somebody unfolded it."""
    (tmp_path / "bomb.png").write_bytes(BOMBS[kind]())
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "bomb.png"], cwd=root, capture_output=True, text=True, check=True
    )
    verdict, kilobytes = done.stdout.splitlines()
    assert verdict.startswith(("too large: ", "broken: ")) or (verdict == "used" and "a " in kind)
    assert int(kilobytes) < 2**18  # 256 MB


def test_a_large_image_with_something_on_it_is_no_bomb(monkeypatch):
    monkeypatch.setattr("autolora.data.pictures.MANY", 10_000)
    decode(encoded(picture(1, 200, 200)), 32)
    with pytest.raises(BadImage, match="too large: 1 million pixels in 1 kB, all but empty"):
        decode(png(1_200, 8), 32)


def test_a_header_of_ten_trillion_images(workspace):
    """In an .npz, of images and of labels: refused before any memory is asked for."""
    for name in ("x", "y"):
        arrays = {"x": np.zeros((40, 8, 8), np.uint8), "y": np.arange(40) % 2}
        buffer = io.BytesIO()
        np.savez(buffer, **{k: v for k, v in arrays.items() if k != name})
        file = workspace.raw / "set.npz"
        file.write_bytes(buffer.getvalue())
        _add(file, name, shape=(10**13, 8, 8) if name == "x" else (10**13,), kind="|u1" if name == "x" else "<i8")
        workspace.set(source="npz", image_size=8)
        with pytest.raises(
            StageError, match=r"x has 10000000000000 images|y says that it has the shape .*, and holds 192 bytes"
        ):
            prepare()


def _add(file: Path, name: str, shape: tuple[int, ...], kind: str) -> None:
    import zipfile

    with zipfile.ZipFile(file, "a") as archive, archive.open(f"{name}.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
        member.write(bytes(64))
