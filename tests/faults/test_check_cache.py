"""A byte flipped in DVC's cache: `dvc repro` brings it back without a word; the tool finds and removes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools import check_cache

STAGES = {
    "one": {"cmd": "python -c \"open('one.txt', 'w').write('one')\"", "outs": ["one.txt"]},
    "many": {
        "cmd": "python -c \"import os; os.mkdir('many'); [open(f'many/{n}', 'w').write(f'many {n}') for n in '12']\"",
        "outs": ["many"],
    },
}


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    dvc("init", "--no-scm", "-q")
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    dvc("repro", "-q")
    return tmp_path


def flip(content: str) -> None:
    """In the cached file with this content."""
    (file,) = (f for f in check_cache.cache().glob("??/*") if f.read_text() == content)
    file.chmod(0o644)
    file.write_text("X" + content[1:])
    file.chmod(0o444)


@pytest.mark.slow
def test_what_dvc_does_not_see_is_found_and_made_again(project, capsys):
    assert check_cache.main([]) == 0
    flip("one")
    Path("one.txt").unlink()
    dvc("repro", "-q")
    assert Path("one.txt").read_text() == "Xne"  # the day this fails, DVC sees it and the tool can go
    assert check_cache.main([]) == 1
    assert "1 files" in capsys.readouterr().out
    assert Path("one.txt").exists()
    assert check_cache.main(["--repair"]) == 0
    dvc("repro", "-q")
    assert Path("one.txt").read_text() == "one"
    flip("many 2")
    assert check_cache.main(["--repair"]) == 0
    assert not Path("many").exists()
    dvc("repro", "-q")
    assert Path("many/2").read_text() == "many 2"
    assert check_cache.main([]) == 0


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    folder = tmp_path / "ab"
    folder.mkdir()
    for name in ("f0" * 15, "f1" * 15 + ".dir", "hjtRXF4mu4Su6pbHTLZ2iZ.tmp"):
        (folder / name).write_text("half of it")
    assert sorted(check_cache.damaged(tmp_path)) == ["ab" + "f0" * 15, "ab" + "f1" * 15 + ".dir"]
