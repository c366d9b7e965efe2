"""The fuzzing benchmark sees what is planted, and finds nothing in a small part of its inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autolora.common.files import read_json
from benchmarks import fuzz

PLANTED = """
import os, sys, time
from pathlib import Path
from hypothesis import strategies as st
from benchmarks import _fuzz_targets as targets, fuzz

def opened(number):
    if number == 1:
        raise KeyError("nobody is meant to see this")
    if number == 2:
        raise ValueError("")
    if number == 3:
        time.sleep(60)
    if number == 4:
        os.system("true")
    if number == 5:
        bytearray(b"x") * (1100 * 2**20)
    raise ValueError("the number is too large")

fuzz.SECONDS = 1
door = targets.Door(st.sampled_from(range(9)), opened, (ValueError,))
targets.doors = lambda: {"planted": door}
fuzz.one_door("planted", 9, 0, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_what_is_planted_is_found(tmp_path: Path) -> None:
    env = os.environ | {fuzz.MARKER: str(tmp_path / "marker")}
    subprocess.run([sys.executable, "-c", PLANTED, str(tmp_path)], check=True, cwd=fuzz.ROOT, env=env)
    record = read_json(tmp_path / "record.json")
    kinds = sorted(finding["kind"] for finding in record["findings"])
    assert record["tried"] == 9
    assert kinds == ["code", "crash", "crash", "hang", "memory"]


def test_a_process_that_dies_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def died(name: str, inputs: int, seed: int, folder: Path) -> tuple[str, str]:
        (folder / "current").write_text(f"input {seed}")
        return "crash", "the process ended with -11"

    monkeypatch.setattr(fuzz, "lived", died)
    record = fuzz.door("images", 100, 7)
    assert [finding["example"] for finding in record["findings"]] == [f"input {7 + n}" for n in range(fuzz.DEATHS)]
    assert fuzz.summary([record])["crashes without a readable message"] == fuzz.DEATHS


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzz.NAMES)
def test_a_small_part_of_it(name: str, tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != fuzz.served.NAME:  # a server, whose memory is measured
        monkeypatch.setattr("sys.executable", python)  # starts with its packages imported
    results = tmp_path / "results.json"
    fuzz.main(["--only", name, "--inputs", "80", "--seed", "1", "--results", str(results)])
    (door,) = read_json(results)["doors"]
    assert door["tried"] >= 80
    assert door["refused with a message"] > 5
    assert door["findings"] == []
