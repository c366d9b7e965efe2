"""What fuzzing has found: each of these was a traceback, or thousands of letters."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from autolora.backbones.checkpoints import read_checkpoint
from pipelines.sweeps import grid
from pipelines.workspace import commits, params_file
from stages.common.errors import StageError
from stages.common.params import check
from stages.common.yaml_text import NotYaml, parsed
from stages.dataset.folders import table

DEEP = "- " * 1500
GRID = "grid: {seed: [0, 1]}\n"


@pytest.mark.parametrize("text", [DEEP, "a: b: c", "%YAML 9.9\n---\n", "a: " + "9" * 5000, "d: 2026-99-99", "\0"])
def test_one_error_for_what_is_no_yaml(text: str) -> None:
    for content in (text, text.encode()):
        with pytest.raises(NotYaml) as raised:
            parsed(content)
        assert 0 < len(str(raised.value)) < 600
    with pytest.raises(commits.WorkspaceError, match="override seed"):
        params_file.parse_overrides([f"seed={text}"])


def test_text_in_another_encoding() -> None:
    with pytest.raises(NotYaml, match="UTF-8"):
        parsed(b"\xff\xff: 1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEEP, "nested too deeply"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
        (GRID + "baseline: 3", "baseline is 3"),
        (GRID + "over: [seed]", "over is"),
        (GRID + "stages: [[1]]", "stages is"),
        (GRID + "first: {a: 1}", "first is"),
        ("grid: {1: []}", "axis 1 is"),
    ],
)
def test_a_sweep_that_is_none(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(grid.GridError, match=words):
        grid.load("mine.yaml", tmp_path)


def test_an_axis_may_be_a_number(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("grid: {1: [2, 3]}\n")
    assert [cell.axes for cell in grid.load("mine.yaml", tmp_path).cells] == [{"1": "2"}, {"1": "3"}]


def test_a_revision_that_no_command_line_takes(root: Path) -> None:
    with pytest.raises(commits.WorkspaceError, match="expected a commit"):
        commits.resolve(root, "a\0b")


def test_params_yaml_nested_or_huge(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(DEEP)
    with pytest.raises(StageError, match="nested too deeply"):
        check(file)
    for huge in ("seed: " + "x" * 50_000, "x" * 50_000 + ": 1"):
        file.write_text((root / "params.yaml").read_text().replace("seed: 0", huge))
        with pytest.raises(StageError) as raised:
            check(file)
        assert 0 < len(str(raised.value)) < 3000


def test_a_list_where_a_word_is_expected(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    params = parsed((root / "params.yaml").read_bytes())
    params["evaluate"]["precision"] = ["float32"]
    file.write_text(json.dumps(params))
    with pytest.raises(StageError, match=r"evaluate\.precision"):
        check(file)


def bytes_of(content: object, **how: bool) -> bytes:
    torch.save(content, file := io.BytesIO(), **how)
    return file.getvalue()


@pytest.mark.parametrize("old", [False])
def test_a_checkpoint_hurt_anywhere_is_refused_or_read(old: bool, tmp_path: Path) -> None:
    """Each byte in turn becomes another; OverflowError, BadZipFile, AssertionError and others came out of this."""
    good = bytes_of({"fc.weight": torch.ones(3, 4)}, _use_new_zipfile_serialization=not old)
    file, refused = tmp_path / "weights.pt", 0
    for at in range(0, len(good), max(1, len(good) // 400)):
        for other in (0, 0xFF, good[at] ^ 1):
            file.write_bytes(good[:at] + bytes([other]) + good[at + 1 :])
            try:
                read_checkpoint(file)
            except ValueError as error:
                refused += bool(str(error).strip())
    assert refused > 50


def test_a_table_whose_header_is_too_long_for_csv(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text(f'path,label,"{"x" * 200_000}"\n')
    with pytest.raises(StageError, match="line 1"):
        list(table(tmp_path))
