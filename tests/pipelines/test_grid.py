"""Grids and what is said about a bad one; the table against SciPy and numbers counted by hand."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import yaml

from autolora.training.diverged import Diverged, check_losses
from pipelines import sweep as sweeping
from pipelines.sweeps import comparison, grid, search
from pipelines.sweeps.comparison import Result
from pipelines.sweeps.marks import Marks
from pipelines.workspace import commits, params_file
from tests.pipelines.conftest import ROOT

SMALL = {"grid": {"finetune.method": ["vanilla", "autolora"], "seed": [0, 1, 2]}, "over": "seed"}
SEARCH = {"axis": "finetune.method", "values": ["vanilla"], "key": "rate", "tries": [0.1, 0.3], "at": {"seed": 1}}
WITH_BASELINE = SMALL | {"baseline": {"finetune.method": "vanilla"}}


def _with(axis):
    return {"grid": SMALL["grid"] | axis}


def test_cells_are_the_product_of_the_axes():
    sweep = grid.parse(SMALL | {"grid": SMALL["grid"] | {"data": {"A": {"preset": "a.yaml", "rate": 9}}}}, "small")
    assert len(sweep.cells) == 6
    assert len({cell.name() for cell in sweep.cells}) == 6
    first = sweep.cells[0]
    assert (first.preset, first.overrides) == ("a.yaml", {"finetune.method": "vanilla", "seed": 0, "rate": 9})
    assert first.axes == {"finetune.method": "vanilla", "seed": "0", "data": "A"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {}}, "expected a mapping with `grid`"),
        ({"gird": 1}, "unknown key gird: allowed are baseline, first"),
        ({"over": "sede"}, "sede is no axis of the grid: the axes are finetune.method, seed"),
        (
            {"baseline": {"finetune.method": "vanila"}},
            "baseline finetune.method is vanila: the grid has vanilla, autolora",
        ),
        ({"grid": {"seed": 3}}, "axis seed is 3: expected a list"),
        ({"search": {"axis": "seed"}}, "search is .* expected axis, values, key, tries, at"),
        (
            {"search": SEARCH | {"values": ["vanila"]}},
            "search finetune.method is vanila: the grid has vanilla, autolora",
        ),
        ({"search": SEARCH | {"at": {"sede": 0}}}, "sede is no axis of the grid"),
        ({"search": SEARCH | {"tries": 3}}, "search.tries is 3: expected a list"),
        (
            {"search": SEARCH | {"at": {"finetune.method": "vanilla"}}},
            "search.at moves finetune.method, which is the axis that is searched for",
        ),
        ({"search": SEARCH | {"key": "seed"}}, "search.key is seed, which is an axis of the grid"),
        (_with({"data": {"A": {"seed": 9}}}), "a later axis sets seed to 9, and its own says 0"),
        (_with({"data": {"A": {1: 2}}}), "axis data is .*: expected a list of values, or names with overrides"),
        (_with({"data": {"A": {"preset": 5}}}), "axis data is .*: expected a list of values"),
        (_with({"clean": [1]}), "an axis is called clean: that is a column of the table"),
        ({"grid": {"seed": [0, 0, 1]}}, "axis seed is .*: a value stands there twice"),
        ({"over": "seed", "baseline": {"seed": 1}}, "seed is averaged over, so no value of it can be the baseline"),
        ({8: 1, "gird": 1}, "unknown key 8, gird: allowed are"),  # YAML knows keys that are no text
        ({"baseline": {8: 1}}, "8 is no axis of the grid"),
        (
            {"baseline": {"seed": "a" * 5_000}},
            "baseline seed is a{400}\\.\\.\\.: the grid has 0, 1, 2",
        ),  # found by fuzzing
    ],
)
def test_bad_grids(change, message):
    with pytest.raises(grid.GridError, match=message):
        grid.parse(SMALL | change, "small")


def test_a_search_is_made_once_for_all_seeds():
    sweep = grid.parse(SMALL | {"search": SEARCH}, "small")
    some = search.tries(sweep)
    assert [one.overrides for one in some] == [
        {"finetune.method": "vanilla", "seed": 1, "rate": 0.1},
        {"finetune.method": "vanilla", "seed": 1, "rate": 0.3},
    ]
    assert len({cell.name() for cell in [*some, *sweep.cells]}) == 2 + 6


def test_a_cell_takes_what_its_search_has_found():
    """The earlier of equals; nothing before all tries are finished; a cell that needs no search is as it was."""
    sweep = grid.parse(SMALL | {"search": SEARCH}, "small")
    vanilla, autolora = sweep.cells[2], sweep.cells[3]
    scores: dict[float, float | None] = {0.1: 0.5, 0.3: 0.6}

    def score(cell: grid.Cell) -> float | None:
        return scores[cell.overrides["rate"]]

    settled = search.settled(sweep, vanilla, score)
    assert settled is not None
    assert (settled.found, settled.name()) == ({"rate": 0.3}, vanilla.name())
    assert sweeping.parameters_of(sweep, settled, "c0ffee", [], Path("."))["overrides"] == {
        "finetune.method": "vanilla", "seed": 2, "rate": 0.3,
    }  # fmt: skip
    assert search.settled(sweep, autolora, score) == autolora
    scores[0.1] = 0.6
    level = search.settled(sweep, vanilla, score)
    assert level is not None
    assert level.found == {"rate": 0.1}
    scores[0.1] = None
    assert search.settled(sweep, vanilla, score) is None


def test_a_try_that_diverged_has_lost_and_is_not_made_again(tmp_path, monkeypatch):
    """What the worker said of it comes as words alone; another failure stays one."""
    monkeypatch.setattr(sweeping, "params_of", lambda source, cell: cell.overrides)
    sweep = grid.parse(SMALL | {"search": SEARCH}, "small")
    marks, vanilla = Marks(tmp_path, "small", "c0ffee"), sweep.cells[2]
    tries = sweeping.tries_of(sweep, [vanilla])
    low, high = tries
    losses = torch.full((1, 3), torch.nan)
    with pytest.raises(Diverged) as said:
        check_losses(losses, epoch=3, file=None)
    failed = {high: f"Task run encountered an exception StageFailed: finetune: {said.value}", low: "no space left"}
    left = sweeping.without_diverged(tmp_path, marks, tries, failed)
    assert left == {low: "no space left"}
    assert marks.lost(tries[high])
    assert not replace(marks, commit="another commit").lost(tries[high])
    assert marks.settled(sweep, vanilla) is None
    place = marks.place(tries[low])
    (place / "reports").mkdir(parents=True)
    (place / "params.yaml").touch()
    (place / "reports/training.csv").write_text("epoch,val_robust\n1,0.0\n")
    marks.finish(tries[low])
    done = marks.settled(sweep, vanilla)
    assert done is not None
    assert done.found == {"rate": 0.1}


def test_where_every_try_diverged_nothing_is_found(tmp_path):
    sweep = grid.parse(SMALL | {"search": SEARCH}, "small")
    marks = Marks(tmp_path, "small", "c0ffee")
    vanilla, autolora = sweep.cells[2], sweep.cells[3]
    for each in search.tries_for(sweep, vanilla):
        assert not marks.hopeless(sweep, vanilla)
        marks.lose(each, {})
    assert marks.hopeless(sweep, vanilla)
    assert marks.settled(sweep, vanilla) is None
    assert not marks.hopeless(sweep, autolora)


def test_the_list_says_of_every_cell_where_it_stands(tmp_path, monkeypatch, capsys):
    """Of two tries that a cell waits for one diverged, then both: there is nothing more to wait for."""
    sweep = grid.parse(SMALL | {"search": SEARCH}, "small")
    marks = Marks(tmp_path, "small", "c0ffee")
    monkeypatch.setattr(sweeping.grid, "load", lambda name, source: sweep)
    monkeypatch.setattr(sweeping.commits, "resolve", lambda source, revision: "c0ffee")
    monkeypatch.setattr(sweeping.rebuild, "work_root", lambda source: tmp_path)

    def states():
        sweeping.show("small", "HEAD", ["vanilla-0*", "autolora-0*"])
        return [re.split(r" (?=vanilla|autolora)", line)[0] for line in capsys.readouterr().out.splitlines()]

    low, high = search.tries_for(sweep, sweep.cells[0])
    marks.lose(high, {})
    assert states() == ["to do", "diverged", "after its search", "to do"]
    marks.lose(low, {})
    assert states() == ["diverged", "diverged", "diverged", "to do"]


def test_a_cell_is_told_as_soon_as_it_ends():
    """The first to be started ends last; what its waiting raises holds nobody up."""
    go_on = threading.Event()

    def fail():
        raise RuntimeError("the cluster is away")

    futures = {
        "slow": SimpleNamespace(wait=go_on.wait),
        "quick": SimpleNamespace(wait=lambda: None),
        "broken": SimpleNamespace(wait=fail),
    }
    ended = sweeping.as_they_end(futures)
    assert {next(ended)[0], next(ended)[0]} == {"quick", "broken"}
    go_on.set()
    assert [name for name, _ in ended] == ["slow"]


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_at_once_is_a_number_of_cells(given, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sweep", "digits", "--at-once", given])
    with pytest.raises(SystemExit) as ended:
        sweeping.main()
    assert ended.value.code == 2
    assert f"--at-once: expected a whole number from 1, not {given}" in capsys.readouterr().err


def test_a_search_is_over_a_key_that_its_tries_read():
    """A try ends with `finetune`: of another stage's key all tries would come out the same."""
    plan = grid.load("small-larger", ROOT)
    assert plan.search is not None
    sweeping.refuse_cells(ROOT, plan)
    unread = replace(plan, search=replace(plan.search, key="evaluate.images"))
    with pytest.raises(grid.GridError, match=r"search\.key is evaluate\.images: finetune does not read it"):
        sweeping.refuse_cells(ROOT, unread)


def test_a_title_may_be_left_empty():
    assert grid.parse(SMALL | {"title": None}, "small").title == "small"


def test_two_sweeps_of_one_name_wait_for_each_other(tmp_path):
    marks = Marks(tmp_path, "small", "c0ffee")
    with marks.alone(), pytest.raises(grid.GridError, match="sweep small is at work already"), marks.alone():
        pass
    with marks.alone():
        pass


def test_seeds_that_all_say_the_same_say_nothing_of_others():
    """0.53 - 0.50 and 0.47 - 0.44 are not the same float."""
    assert comparison.paired_t([0.53, 0.47], [0.50, 0.44]) is None
    assert comparison.paired_t([0.53, 0.48], [0.50, 0.44]) is not None


def test_a_try_without_an_attack_is_judged_by_its_clean_accuracy(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/training.csv").write_text("epoch,val_clean,val_robust\n1,0.5,\n2,0.75,\n3,,\n")
    assert search.validation_accuracy(tmp_path) == 0.75


def test_a_try_is_judged_by_its_best_epoch(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/training.csv").write_text("epoch,val_robust\n1,0.2\n2,\n3,0.4\n4,0.3\n")
    assert search.validation_accuracy(tmp_path) == 0.4


def test_cells_are_chosen_by_their_names():
    sweep = grid.parse(SMALL, "small")
    assert [cell.axes["seed"] for cell in sweeping.chosen(sweep, ["vanilla-0-*", "*-2-*"])] == ["0", "2", "2"]
    assert len(sweeping.chosen(sweep, None)) == 6
    with pytest.raises(grid.GridError, match="no cell is called vanila"):
        sweeping.chosen(sweep, ["vanila"])


def test_unknown_sweep_lists_those_there_are():
    with pytest.raises(grid.GridError, match=r"no sweep 'paper'.*digits, paper-table"):
        grid.load("paper", ROOT)


def test_the_grid_of_the_paper():
    sweep = grid.load("paper-table", ROOT)
    assert len(sweep.cells) == 6 * 2 * 8 * 3
    assert sweep.axes["recipe"][:3] == ["vanilla", "twins2023", "autolora2024-paper"]


@pytest.mark.parametrize("name", [file.stem for file in sorted((ROOT / "presets" / "sweeps").glob("*.yaml"))])
def test_every_cell_of_our_sweeps_is_a_valid_params_yaml(name, tmp_path):
    """Our own schema is asked about each different combination of preset and overrides."""
    from stages.common.params import Params

    sweep = grid.load(name, ROOT)
    for cell in [*search.tries(sweep), *sweep.cells]:
        params = yaml.safe_load((ROOT / (cell.preset or "params.yaml")).read_text())
        for key, value in cell.overrides.items():
            params_file.put(params, key, value, allow_new=True)  # the schema knows a wrong one
        Params.model_validate(params)


@pytest.mark.parametrize(
    ("grid_", "message"),
    [
        ({"finetune.method": ["vanilla", "vanila"]}, r"vanila-\w+: finetune.method is 'vanila'.*'vanilla'"),
        ({"finetune.methd": ["vanilla"]}, r"finetune.methd"),
        ({"tarin.epochs": [1]}, "no section 'tarin'"),
        ({"data": {"A": {"preset": "presets/cifar.yaml"}}}, "cell A-.*: there is no preset presets/cifar.yaml"),
    ],
)
def test_a_bad_cell_is_refused_before_any_is_built(grid_, message):
    with pytest.raises((commits.WorkspaceError, grid.GridError), match=message):
        sweeping.refuse_cells(ROOT, grid.parse({"grid": grid_}, "bad"))


def test_a_sweep_is_refused_before_a_server_is_started(project, monkeypatch):
    """One line, no traceback; Prefect is forbidden to start its server, so that a late refusal fails the test."""
    monkeypatch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    monkeypatch.chdir(project)
    (project / "toy.yaml").write_text(yaml.safe_dump({"stages": ["trian"], "grid": {"seed": [0, 1]}}))
    monkeypatch.setattr("sys.argv", ["sweep", "toy.yaml"])
    with pytest.raises(SystemExit, match=r"sweep: there is no stage 'trian' in dvc\.yaml"):
        sweeping.main()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("finetune: there is no file x\nexit status 255\n> python -m x\nERROR: failed", "finetune: there is no file x"),
        ("exit status 247\nfinetune:  42%|###  | 25/60\nERROR: exited with -9", "exit status 247"),
        (None, "Failed"),
    ],
)
def test_a_failed_cell_is_named_with_what_its_stage_said(message, said):
    future = SimpleNamespace(state=SimpleNamespace(message=message, name="Failed"))
    assert sweeping.reason(future) == said


def result(folder: Path, cell: grid.Cell, stood: list[bool]) -> Result:
    """A cell that has been attacked on as many images as `stood` is long."""
    reports = folder / cell.name() / "reports"
    reports.mkdir(parents=True)
    flags = np.zeros(len(stood), [("id", "S64"), ("robust", "?")])
    flags["id"], flags["robust"] = [f"{i:03d}" for i in range(len(stood))], stood
    np.save(reports / "robust_flags.npy", flags)
    figures = {"clean_accuracy": 1.0, "robust_accuracy": float(np.mean(stood))}
    (reports / "robustness.json").write_text(json.dumps(figures))
    return Result(cell, folder / cell.name())


def test_table_against_scipy(tmp_path):
    sweep = grid.parse(WITH_BASELINE, "small")
    random = np.random.default_rng(0)
    shares = [0.4, 0.5, 0.45, 0.6, 0.62, 0.66]
    stood = [random.random(200) < share for share in shares]
    rows = comparison.table(sweep, [result(tmp_path, c, s.tolist()) for c, s in zip(sweep.cells, stood, strict=True)])
    theirs, ours = np.array(stood[:3]), np.array(stood[3:])
    assert rows[0]["robust"] == pytest.approx(theirs.mean())
    assert rows[0]["robust_sd"] == pytest.approx(theirs.mean(1).std(ddof=1))
    assert "p_seeds" not in rows[0]
    assert rows[1]["difference"] == pytest.approx(ours.mean() - theirs.mean())
    assert rows[1]["p_seeds"] == pytest.approx(scipy.stats.ttest_rel(ours.mean(1), theirs.mean(1)).pvalue)
    more = ours.sum(0) - theirs.sum(0)  # an image is one observation, however many seeds asked about it
    only_ours, only_theirs = int((more > 0).sum()), int((more < 0).sum())
    expected = scipy.stats.binomtest(only_ours, only_ours + only_theirs).pvalue
    assert rows[1]["p_images"] == pytest.approx(expected)


def test_repeating_a_seed_makes_no_image_count_twice(tmp_path):
    """Three seeds that come out alike know no more about the images than one: pooled, p would be 0.0005, not 0.125."""
    sweep = grid.parse(WITH_BASELINE, "small")
    weak, strong = [False] * 4 + [True] * 6, [True] * 10
    results = [
        result(tmp_path, cell, stood) for cell, stood in zip(sweep.cells, [weak] * 3 + [strong] * 3, strict=True)
    ]
    assert comparison.table(sweep, results)[1]["p_images"] == 0.125
    assert comparison.table(sweep, [results[0], results[3]])[1]["p_images"] == 0.125


def test_cells_that_failed_are_counted_not_hidden(tmp_path):
    sweep = grid.parse(WITH_BASELINE, "small")
    rows = comparison.table(sweep, [result(tmp_path, cell, [True, False]) for cell in sweep.cells[:4]])
    assert [(row["n"], row["missing"]) for row in rows] == [(3, 0), (1, 2)]
    assert rows[1]["p_seeds"] is None  # one seed says nothing about another
    files = comparison.write(sweep, rows, tmp_path / "out")
    assert [file.name for file in files] == ["table.csv", "table.md", "table.png"]
    assert "| autolora | 1 | 100.00 |  | 50.00 |  | 0.00 | 1 |  | 2 |" in files[1].read_text()
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_different_images_are_not_paired(tmp_path):
    sweep = grid.parse(WITH_BASELINE, "small")
    first = result(tmp_path, sweep.cells[0], [True, False])
    other = result(tmp_path, sweep.cells[3], [True, False, True])
    with pytest.raises(ValueError, match="attacked on different images"):
        comparison.table(sweep, [first, other])


def test_a_cell_whose_files_are_elsewhere_is_not_done(tmp_path):
    """A worker with storage of its own has built it, and nothing of it is here; then the storage is shared."""
    cell = grid.parse(SMALL, "small").cells[0]
    marks = Marks(tmp_path, "small", "abc")
    assert "AUTOLORA_WORK must be storage that both machines see" in (marks.finish(cell) or "")
    assert not marks.finished(cell)
    marks.place(cell).mkdir(parents=True)
    (marks.place(cell) / "params.yaml").write_text("seed: 0")
    assert marks.finish(cell) is None
    assert marks.finished(cell)
    (marks.place(cell) / "reports").mkdir()
    marks.forget(cell)
    assert not marks.place(cell).exists()  # no report of an earlier commit passes for the next one's


def test_what_a_search_found_goes_before_what_the_grid_says(tmp_path):
    methods = {"vanilla": {"finetune.method": "vanilla", "finetune.rate": 0.01}}
    search = SEARCH | {"axis": "recipe", "key": "finetune.rate"}
    sweep = grid.parse({"grid": {"recipe": methods, "seed": [0, 1]}, "search": search}, "small")
    cell = replace(sweep.cells[0], found={"finetune.rate": 0.3})
    assert sweeping.parameters_of(sweep, cell, "c0ffee", [], Path("."))["overrides"]["finetune.rate"] == 0.3
    (tmp_path / "params.yaml").write_text("finetune: {method: autolora, rate: 0.1}\nseed: 0\n")
    assert sweeping.params_of(tmp_path, cell)["finetune"] == {"method": "vanilla", "rate": 0.3}


def test_a_cell_is_finished_with_the_value_that_was_found_and_no_other(tmp_path):
    marks, cell = Marks(tmp_path, "small", "c0ffee"), grid.parse(SMALL, "small").cells[0]
    low, high = (replace(cell, found={"rate": rate}) for rate in (0.1, 0.3))
    marks.place(low).mkdir(parents=True)
    (marks.place(low) / "params.yaml").touch()
    assert marks.finish(low) is None
    assert marks.finished(low)
    assert not marks.finished(high)
    assert not marks.finished(cell)


def test_cells_of_one_name_that_stand_for_other_settings_have_folders_of_their_own():
    names = set()
    for images in (100, 200):
        sweep = grid.parse({"grid": {"data": {"A": {"preset": "a.yaml", "evaluate.images": images}}}}, "small")
        names.add(sweep.cells[0].name())
    assert len(names) == 2
