"""What stands around every stage: one readable line for a failure, a place to go on from, one process a key."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from autolora.common.files import AtWork, file_sha256, read_json, replacing, weights_sha256, write_json
from stages.common.endings import ended
from stages.common.errors import AGAIN, BUSY, INTERRUPTED, MEND, Busy, StageError, TryAgain
from stages.common.runner import main, only_one, timed, work_dir
from tests.house.imports import ROOT


def prepare_ends(capsys, error):
    """Exit code, the line on stderr, and what a flow finds."""

    def prepare():
        raise error

    with pytest.raises(SystemExit) as caught:
        main(prepare)
    return caught.value.code, capsys.readouterr().err.strip(), ended("prepare")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StageError("no such thing"), MEND),
        (ValueError("no such thing"), MEND),
        (Busy("no such thing"), BUSY),
        (AtWork("no such thing"), BUSY),
        (TryAgain("no such thing"), AGAIN),
    ],
)
def test_a_failure_is_one_line_and_its_code_says_what_to_do(capsys, error, code):
    found, said, told = prepare_ends(capsys, error)
    assert (found, said) == (code, "prepare: no such thing")
    assert told == (code, "no such thing")


def test_a_full_disk_names_the_file(capsys):
    code, said, _ = prepare_ends(capsys, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "models/x"))
    assert code == MEND
    assert "models/x" in said
    assert "No space left" in said
    assert "goes on where it stopped" in said


@pytest.mark.parametrize("name", ["EACCES", "EISDIR", "ENAMETOOLONG", "EMFILE", "EIO", "ESTALE"])
def test_what_is_wrong_with_a_file_is_one_line(capsys, name):
    number = getattr(errno, name)
    code, said, _ = prepare_ends(capsys, OSError(number, os.strerror(number), "data/raw/x"))
    assert code == MEND
    assert said.startswith(f"prepare: cannot read or write data/raw/x: {os.strerror(number)}. Mend that")


def test_no_code_is_one_that_python_or_dvc_ends_with():
    assert not {MEND, BUSY, AGAIN, INTERRUPTED} & {0, 1, 2, 120, 255, *range(250, 255)}
    assert len({MEND, BUSY, AGAIN, INTERRUPTED}) == 4


def test_an_ending_is_of_the_last_run_only(capsys):
    prepare_ends(capsys, TryAgain("away"))

    def prepare():
        assert ended("prepare") is None

    main(prepare)
    assert ended("prepare") is None


def test_the_first_of_several_processes_to_tell_is_right(capsys, monkeypatch):
    """As with torchrun: a process says what is wrong, and the one that started it only that a process failed."""
    monkeypatch.setenv("RANK", "0")
    prepare_ends(capsys, Busy("another process is at work"))
    monkeypatch.setenv("RANK", "1")
    assert prepare_ends(capsys, StageError("a consequence"))[2] == (BUSY, "another process is at work")
    monkeypatch.setenv("RANK", "0")
    assert prepare_ends(capsys, TryAgain("one of 2 processes failed"))[0] == BUSY


def test_where_an_ending_cannot_be_written_the_line_and_the_code_remain(capsys, tmp_path):
    (tmp_path / ".work").write_text("a file, where a folder should be")
    assert prepare_ends(capsys, StageError("no such thing")) == (MEND, "prepare: no such thing", None)


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    def divides():
        raise ZeroDivisionError

    def complains():
        raise ValueError("whose?")

    with pytest.raises(ZeroDivisionError):
        main(divides)
    monkeypatch.setenv("AUTOLORA_TRACEBACK", "1")
    with pytest.raises(ValueError, match="whose"):
        main(complains)


def test_the_same_work_has_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLORA_WORK", str(tmp_path))
    first = work_dir("merge", seed=0, threat={"norm": "linf", "eps": "8/255"})
    assert first == work_dir("merge", threat={"eps": "8/255", "norm": "linf"}, seed=0)
    assert first != work_dir("merge", seed=1, threat={"norm": "linf", "eps": "8/255"})
    assert first.parent == tmp_path / "merge"
    assert first.is_dir()


def test_one_process_a_key(tmp_path):
    """The second is refused while the first lives, and let in as soon as it is gone, also when it was killed."""
    code = "import sys, time; from pathlib import Path; from stages.common.runner import only_one\n"
    code += "with only_one(Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout.readline() == "in\n"
    with pytest.raises(StageError, match="another process"), only_one(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with only_one(tmp_path):
        pass


def test_timing_is_on_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with timed("merge", "out") as record:
        record["images_per_s"] = 3
        (tmp_path / "out").write_text("b")
    written = read_json("reports/timing/merge.json")
    assert {"seconds", "peak_memory_mb", "machine", "images_per_s"} <= set(written)
    assert written["made"] == {"out": file_sha256(tmp_path / "out")}


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "out" / "x.json"
    write_json(path, {"b": 1, "a": 2})
    before = file_sha256(path)

    def dies_half_way():
        with replacing(path) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dies_half_way()
    assert file_sha256(path) == before
    assert list(path.parent.iterdir()) == [path]


def test_weights_hash_sees_name_dtype_shape_and_bytes():
    import torch

    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1)}
    digest = weights_sha256(state)
    assert digest == weights_sha256(dict(reversed(state.items())))
    assert digest == weights_sha256({"a": state["a"].t().contiguous().t(), "b": state["b"]})  # layout is no content
    for other in (
        {**state, "a": state["a"].view(3, 2)},
        {**state, "a": state["a"].double()},
        {**state, "b": torch.tensor(2)},
        {"a": state["a"], "c": state["b"]},
    ):
        assert weights_sha256(other) != digest
