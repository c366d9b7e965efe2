"""docs/results.md against numbers counted by hand, and the pages of this repository against its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autolora.common.files import write_json
from benchmarks import _report_cells as cells
from benchmarks import _report_numbers as numbers
from benchmarks import _report_pictures as pictures
from benchmarks import _report_results as results
from benchmarks import _report_studies as studies
from benchmarks import _report_words as words
from benchmarks import report, small_sets
from benchmarks._report_cells import Row, bits
from benchmarks._report_words import MAIN
from pipelines.sweeps import grid, search
from stages.common.params import check
from tests.house.imports import ROOT


def row(recipe: str, seed: int, stood: str, **other: object) -> Row:
    """Ten images, of which those marked 1 stand the attack; all are read rightly without it."""
    robust = np.array([letter == "1" for letter in stood])
    return replace(
        Row(
            study=MAIN, data="digits", recipe=recipe, seed=seed, setting="", cell=f"{recipe}-{seed}", commit="c0ffee",
            threat="linf 8/255", side=32, train=600, val=120, epochs=40, rate=0.01, val_clean=0.9, val_robust=0.5,
            forwards=1_000_000, processor_seconds=10.0, attack_seconds=30.0, threads=1, machine="a machine",
            python="3.11", torch="2.13", version="fast", n=len(robust), clean=1.0, robust=robust.mean().item(),
            expected=0.5, alpha=0.0, images="the same", guess=0.2,
            clean_flags=bits(np.ones(len(robust), bool)), robust_flags=bits(robust),
            val_robust_by_epoch="0.1 0.5", cosine_by_epoch="0.9 0.7", dial="0:0.9000/0.5000",
        ),
        **other,
    )  # fmt: skip


def attempt(recipe: str, rate: float, right: float, forwards: int) -> Row:
    """A try of a search."""
    name, nothing = f"finetune.rate={rate}", dict.fromkeys(("n", "clean", "robust", "clean_flags", "robust_flags"))
    return row(
        recipe, 0, "0", setting=name, cell=name, rate=rate, val_robust=right, forwards=forwards, **nothing, version=None
    )


ROWS = [
    row("vanilla-searched", 0, "1110000000"),
    row("vanilla-searched", 1, "1100000000"),
    row("best", 0, "1111111110"),  # six more than the baseline at seed 0
    row("best", 1, "1111000000"),
    row("natural", 0, "0000000001"),
    attempt("vanilla-searched", 0.003, 0.2, 700_000),
    attempt("vanilla-searched", 0.03, 0.4, 800_000),
]


def test_a_try_that_diverged_is_said_and_costs_nothing(tmp_path):
    lost = attempt("vanilla-searched", 0.1, 0.0, 0)
    lost = replace(lost, epochs=0, val_clean=0.0, val_robust=None, forwards=None, train=None, val=None)
    cells.write(tmp_path, [*ROWS, lost])
    assert lost in cells.read(tmp_path)
    facts = report.Facts(cells.read(tmp_path), {})
    said = "\n".join([*results.costs(facts), *results.first_rates(facts)])
    assert "| 3, 1 diverged |" in said
    assert "| 1.50 |" in said
    assert "0.003: 20.0; 0.03: 40.0; 0.1: diverged | 20.0 |" in said


def test_a_baseline_that_has_not_run_on_all_sets_is_named():
    rows = [row(name, 0, "1100000000", data=data) for data in "ab" for name in ("vanilla", "vanilla-searched", "best")]
    rows.append(row("twins-searched", 0, "1100000000", data="a"))
    found = numbers.compared(numbers.groups(rows), ("vanilla", "vanilla-searched", "twins-searched"), "robust")
    assert "have not run on all sets, `twins-searched` (1 of 2)**" in results.claim(found)


def test_means_and_spreads():
    found = {group.recipe: group for group in numbers.groups(ROWS)}
    assert found["best"].mean("robust") == pytest.approx(0.65)
    assert found["best"].sd("robust") == pytest.approx(0.25 * 2**0.5)  # of 0.9 and 0.4
    assert found["natural"].sd("robust") is None
    assert len(found) == 3  # tries are no results


def test_an_image_counts_once_and_p_is_corrected():
    """At seed 0 images 4 to 9 are best's alone, at seed 1 images 3 and 4: seven for best, none for the baseline."""
    some = numbers.compared(numbers.groups(ROWS), ["vanilla-searched"], "robust")
    found = {one.recipe: one for one in some}
    best, natural = found["best"], found["natural"]
    assert (best.seeds, best.only_ours, best.only_theirs) == (2, 7, 0)
    assert best.difference == pytest.approx((0.6 + 0.2) / 2)
    assert best.p == pytest.approx(2 / 2**7)
    assert best.adjusted == pytest.approx(2 * 2 / 2**7)  # the smaller of two
    assert best.p_seeds is None  # two seeds say little of others
    assert (natural.seeds, natural.only_ours, natural.only_theirs) == (1, 1, 3)
    assert natural.p == natural.adjusted == pytest.approx(2 * (1 + 4) / 2**4)
    assert best.sure()
    assert not natural.sure()


def test_three_seeds_say_something_of_others():
    third = [row("vanilla-searched", 2, "1100000000"), row("best", 2, "1111110000")]
    ((best, _)) = numbers.compared(numbers.groups([*ROWS, *third]), ["vanilla-searched"], "robust")
    assert best.p_seeds == pytest.approx(0.0742, abs=1e-4)  # t of 0.6, 0.2 and 0.4 is 3.464, two degrees of freedom
    level = [
        row(name, seed, "1" * n + "0" * (10 - n)) for seed in range(3) for name, n in (("best", 4), ("vanilla", 2))
    ]
    ((one,)) = numbers.compared(numbers.groups(level), ["vanilla"], "robust")
    assert one.p_seeds is None  # the same difference three times: no spread to hold it against


def test_the_claim_is_corrected_for_itself_alone():
    """A pair that has nothing to do with it makes no difference less sure."""
    found = numbers.compared(numbers.groups(ROWS), ["vanilla-searched"], "robust")
    ((best,)) = numbers.corrected([one for one in found if one.recipe == "best"])
    assert best.adjusted == best.p < next(one for one in found if one.recipe == "best").adjusted


def test_what_is_set_beside_each_other_has_the_same_seeds():
    names = ("best", "natural", "vanilla", "linear")
    rows = [row(name, seed, "1" * 10) for name in names for seed in range(3)]
    some = numbers.groups([*rows, row("twins-searched", 0, "1" * 10), row("vanilla-searched", 0, "1" * 10)])
    shared = numbers.at_shared_seeds(some)
    assert {group.recipe: group.seeds() for group in shared} == {name: [0, 1, 2] for name in names}
    assert words.left_out(some, shared) == " (without `twins-searched` and `vanilla-searched`, which have fewer)"
    fewer = numbers.groups([one for one in rows if one.recipe in names[:2] or one.seed == 0])
    assert [group.seeds() for group in numbers.at_shared_seeds(fewer)] == [[0]] * 4  # two of four are not most
    assert words.left_out(fewer, numbers.at_shared_seeds(fewer)) == ""
    assert numbers.at_shared_seeds([]) == []


def test_a_search_that_ends_at_the_end_of_its_grid_is_said():
    tried = [attempt("vanilla-searched", rate, right, 1) for rate, right in ((0.01, 0.3), (0.03, 0.5), (0.1, 0.4))]
    assert results.edge(tried) == "0.03"
    assert results.edge(tried[:2]) == "0.03, the highest tried"
    assert results.edge(tried[1:]) == "0.03, the lowest tried"
    lost = replace(tried[2], val_robust=None, epochs=0)
    assert results.edge([*tried[:2], lost]) == "0.03"


def test_standard_autoattack_stands_beside_the_short_one_at_the_same_seeds():
    again = row("best", 0, "1111000000", study="small-standard", version="standard")
    facts = report.Facts([*ROWS, again], {})
    said = "\n".join(studies.further(facts, studies.STUDIES[0]))
    assert "robust by `fast`, the same seeds |" in said
    assert "| digits |  | best | 1 | 100.0 | 40.0 | 1.00 | 10 | 30 | 90.0 |" in said


AMOUNTS = [
    row("best", 0, stood, study="small-amounts", setting=f"training images={amount}", cell=f"{amount}-{recipe}")
    for amount, recipe, stood in (
        (1000, "best", "1111111100"), (300, "best", "1111111000"), (100, "best", "0000000000")
    )
]  # fmt: skip


def test_a_study_goes_along_its_axis():
    """7 images more, then 1: p is 2 / 2^7 and 1, the smaller one twice."""
    facts = report.Facts(AMOUNTS, {})
    study = next(one for one in studies.STUDIES if one.sweep == "small-amounts")
    said = "\n".join(studies.further(facts, study))
    assert "| set | training images | recipe |" in said
    lines = [line for line in said.splitlines() if line.startswith("| digits |")]
    assert [line.split(" | ")[1] for line in lines] == ["100", "300", "1000"]
    ends = [line.split(" | ")[-1] for line in lines]
    assert ends == [" |", "**+70.0 (7:0, p 0.031)** |", "+10.0 (1:0, p 1) |"]
    assert "](results-amounts.png)" in said
    ((clean, attacked)) = pictures.panels(facts)["results-amounts"].items()
    assert (clean[0], attacked[0]) == ("digits, clean", "digits, under attack")
    assert [point[:2] for point in attacked[1]["best"]] == [(100, 0), (300, 70), (1000, 80)]


def test_other_test_images_are_no_step():
    facts = report.Facts([AMOUNTS[0], replace(AMOUNTS[1], images="others")], {})
    assert studies.steps(facts.groups("small-amounts")) == {}


def test_two_baselines_are_one_test():
    some = numbers.groups(ROWS)
    found = numbers.compared(some, ["vanilla-searched", "natural"], "robust")
    assert len(found) == 4  # three pairs, one of them from both sides
    ours, theirs = (one for one in found if {one.recipe, one.baseline} == {"natural", "vanilla-searched"})
    assert ours.adjusted == theirs.adjusted
    best = next(one for one in found if (one.recipe, one.baseline) == ("best", "vanilla-searched"))
    assert best.adjusted == pytest.approx(3 * best.p)


def test_a_count_that_contradicts_the_mean_is_not_sure():
    """Three seeds: 40 images are ours alone, each under one of them; 15 are theirs alone under all three."""
    wide = ["".join("1" if i < 40 and i % 3 == seed else "0" for i in range(60)) for seed in range(3)]
    rows = [row("best", seed, stood) for seed, stood in enumerate(wide)]
    rows += [row("vanilla-searched", seed, "0" * 40 + "1" * 15 + "0" * 5) for seed in range(3)]
    ((one,)) = numbers.compared(numbers.groups(rows), ["vanilla-searched"], "robust")
    assert (one.only_ours, one.only_theirs) == (40, 15)
    assert one.adjusted < 0.002
    assert one.difference < 0
    assert not one.sure()
    assert not one.more()
    assert not one.less()


def test_who_is_level_with_the_leader():
    """10 of 10 against 9 and 1: one image is no difference, nine are."""
    rows = [row("best", 0, "1" * 10), row("vanilla", 0, "1" * 9 + "0"), row("natural", 0, "1" + "0" * 9)]
    leader, *others = numbers.groups(rows, ["digits", "best", "vanilla", "natural"])
    assert [group.recipe for group in numbers.beside(leader, others, "robust")] == ["vanilla"]


def test_other_images_are_not_compared():
    with pytest.raises(numbers.Mixed, match="digits: best and vanilla-searched"):
        numbers.compared(numbers.groups([ROWS[0], replace(ROWS[2], images="others")]), ["vanilla-searched"], "robust")


def test_a_search_costs_its_tries():
    found = {group.recipe: group for group in numbers.groups(ROWS)}
    assert numbers.price(ROWS, found["vanilla-searched"], "forwards") == 1_500_000
    assert numbers.price(ROWS, found["best"], "forwards") == 1_000_000


def test_what_more_forwards_buy():
    some = numbers.groups(ROWS)
    named = {group.recipe: group for group in some}
    prices = {"natural": 1.0, "vanilla-searched": 1.5, "best": 3.0}
    found = numbers.front(some, lambda group: prices[group.recipe])
    assert found == [(named["natural"], None), (named["best"], pytest.approx(0.0215, abs=1e-4))]  # 9:1; 3:1 is nothing
    prices["best"] = 1.0  # 65 % for the price of natural's 10 %
    assert numbers.front(some, lambda group: prices[group.recipe]) == [(named["best"], None)]


def test_rows_survive_their_file(tmp_path):
    cells.write(tmp_path, ROWS)
    assert sorted(cells.read(tmp_path), key=str) == sorted(ROWS, key=str)
    once_more = cells.merged(ROWS, [replace(ROWS[2], forwards=None, processor_seconds=None, robust=0.8)])
    changed = next(one for one in once_more if one.cell == "best-0")
    assert (changed.robust, changed.forwards, len(once_more)) == (0.8, 1_000_000, len(ROWS))


def test_a_finished_cell_becomes_a_row(tmp_path):
    """The files that a rebuild leaves, counted by hand."""
    folder = tmp_path / ".work/sweeps/small-table/a-cell"
    (folder / "reports/timing").mkdir(parents=True)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    axes = {"data": "digits", "recipe": "best", "side": "16", "seed": "2"}
    write_json(folder / "cell.json", {"axes": axes, "commit": "0123456789abcdef"})
    write_json(
        folder / "reports/timing/finetune.json",
        {
            "images": {"train": 100, "val": 10},
            "processor_seconds": 7.5,
            "threads": 1,
            "machine": "m",
            "python": "3",
            "seconds": 8.0,
            "epochs": [{"seconds": 2.0}] * 3,
        },
    )
    (folder / "reports/training.csv").write_text(
        "lr,val_clean,val_robust,gradient_cosine,event\n0.01,0.5,0.2,,best\n0.01,0.7,0.4,0.9,best\n0.005,0.8,0.3,0.8,\n"
    )
    ((one,)) = cells.collect(tmp_path)
    assert (one.setting, one.seed, one.commit, one.epochs, one.rate) == ("side=16", 2, "0123456789ab", 3, 0.01)
    assert (one.val_clean, one.val_robust, one.cosine_by_epoch) == (0.7, 0.4, "- 0.9 0.8")
    validation, guard = 10 * (10 * 3 + 2), 32 * (11 * 3 + 2)  # in each of so few epochs
    assert one.forwards == 3 * (100 * (3 + 2 * 3 + 1) + validation + guard)  # one gradient, two passes, SA
    assert not one.attacked()  # as a try of a search

    flags = np.array([(b"b", True, False), (b"a", True, True)], [("id", "S64"), ("clean", "?"), ("robust", "?")])
    np.save(folder / "reports/robust_flags.npy", flags)
    report_ = {"version": "fast", "clean_accuracy": 1.0, "robust_accuracy": 0.5, "alpha": 0, "versions": {"torch": "2"}}
    report_ |= {"by_class": [{"n": 1}, {"n": 1}]}
    write_json(folder / "reports/robustness.json", report_)
    (folder / "reports/eps_curve.csv").write_text(f"model,eps,accuracy\nrobust,0,1\nrobust,{32 / 255},0\nnatural,0,0\n")
    (folder / "reports/alpha_curve.csv").write_text("toward,alpha,clean,robust\nbranch,0,0.9,0.5\nnatural,1,0.9,0.1\n")
    ((one,)) = cells.collect(tmp_path)
    assert (one.n, one.clean, one.robust, one.guess, one.dial) == (2, 1.0, 0.5, 0.5, "0:0.9000/0.5000")
    assert one.expected == pytest.approx(0.5)  # a straight line from 1 to 0 over 32/255, twice the threat's 16/255
    assert cells.unpacked(str(one.robust_flags), 2).tolist() == [True, False]  # by id

    (folder / "reports/timing/finetune.json").unlink()  # from DVC's cache; what was attacked here is known
    write_json(folder / "reports/timing/evaluate.json", {"processor_seconds": 60.0, "machine": "m", "python": "3"})
    ((one,)) = cells.collect(tmp_path)
    assert (one.forwards, one.attack_seconds, one.machine) == (None, 60.0, "m")


@pytest.fixture
def project(tmp_path) -> Path:
    """Pages that were built from the rows above."""
    shutil.copytree(ROOT / "presets/sweeps", tmp_path / "presets/sweeps")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("<!-- made by benchmarks.report -->\n<!-- end of what is made -->\n")
    cells.write(tmp_path / cells.RESULTS, ROWS)
    report.build(tmp_path)
    assert report.wrong(tmp_path) == []
    return tmp_path


def test_the_page_says_it(project):
    page = (project / "docs/results.md").read_text()
    assert "**5 of 144 cells have run, 139 have not** (digits 5 of 36," in page
    assert "| digits | best | 2 | 100.0 ± 0.0 | 65.0 ± 35.4 | 50.0 ± 0.0 | 0.01 |" in page
    assert "| digits | best | **+40.0 (7:0, p 0.031)** |" in page
    assert "| best | vanilla-searched | 1 | 1 | 0 | 0 |" in page
    assert "| digits | vanilla-searched | 1.50 | 20 | 2 | 30 | 25.0 |" in page
    assert "Not run yet: `uv run python -m pipelines.sweep small-sides`" in page
    assert "## On few images" not in (project / "README.md").read_text()  # one set is not enough


def test_a_changed_number_is_found(project):
    page = project / "docs/results.md"
    page.write_text(page.read_text().replace("65.0 ± 35.4", "66.0 ± 35.4"))
    assert [problem.partition(",")[0] for problem in report.wrong(project)] == ["docs/results.md"]


def test_a_changed_table_is_found_on_page_and_picture(project):
    cells.write(project / cells.RESULTS, [replace(one, forwards=2_000_000) for one in ROWS])
    found = {problem.partition(" ")[0].rstrip(",") for problem in report.wrong(project)}
    assert found == {"docs/results.md", "docs/results-cost.png"}


def test_what_is_written_by_hand_stays(project):
    page = project / "docs/results.md"
    mark, read = "<!-- written by hand -->\n", "<!-- read again at 5 cells -->\nWe think so.\n"
    page.write_text(page.read_text().replace(mark, mark + read))
    assert report.wrong(project) == []
    report.build(project)
    assert "We think so." in page.read_text()


def test_what_was_written_of_fewer_cells_must_be_read_again(project):
    page, mark = project / "docs/results.md", "<!-- written by hand -->\n"
    before = page.read_text()
    page.write_text(before.replace(mark, f"{mark}We think so.\n"))
    assert report.wrong(project) == [
        "docs/results.md: what is written by hand was read at no cells, and there are 5: read it again"
    ]
    page.write_text(before.replace(mark, f"{mark}<!-- read again at 4 cells -->\nWe think so.\n"))
    assert "was read at 4 cells, and there are 5" in report.wrong(project)[0]


def test_three_sets_reach_the_readme(project):
    leading = ["natural", "vanilla", "best"]
    rows = [row(name, 0, "1100000000", data=data, cell=f"{data}-{name}") for data in "abc" for name in leading]
    cells.write(project / cells.RESULTS, [*rows, row("linear", 0, "1000000000", data="a", cell="a-linear")])
    report.build(project)
    readme = (project / "README.md").read_text()
    assert "| best | 100.0 / 20.0 | 100.0 / 20.0 | 100.0 / 20.0 |" in readme
    assert f"| recipe | {' | '.join(f'{data}, 32 px, linf 8/255, n = 10' for data in 'abc')} |" in readme
    assert "| linear |" not in readme  # on one set only
    level = "+0.0 (no sure difference on 3 sets)"
    assert f"| `vanilla` | {level} | {level} |" in readme
    assert "Each was trained once: another seed may say otherwise." in readme
    assert "Searched, but not on all sets yet: `vanilla-searched` and `twins-searched`." in readme
    assert "| `vanilla-found` |" not in readme
    assert "the mean where a cell names several seeds, after fine-tuning the backbone that ships on 600 " in readme
    found = [row("vanilla-found", 0, "1110000000", data=data, cell=f"{data}-found") for data in "abc"]
    cells.write(project / cells.RESULTS, [*rows, *found])
    report.build(project)
    readme = (project / "README.md").read_text()
    assert "| `vanilla-found` | -10.0 (no sure difference on 3 sets) |" in readme
    searched = row("vanilla-searched", 0, "0" * 10, data="a", cell="a-searched")
    cells.write(project / cells.RESULTS, [*rows, searched])
    report.build(project)
    readme = (project / "README.md").read_text()
    assert "| `vanilla-searched` | +20.0 (no sure difference on 1 set) |" in readme
    assert "| `vanilla` | +0.0" in readme  # as long as a set lacks the search


@pytest.mark.parametrize(
    ("finetune", "event", "one"),
    [
        ({}, "", 1.0),
        ({"reference": "paper"}, "", 0.0),
        ({"attack": "pgd"}, "", 0.0),
        ({"attack": "single", "method": "madry"}, "", 1.0),
        ({}, "collapsed", 0.75),  # after the third epoch of four
    ],
)
def test_the_cost_is_of_the_gradients_that_were_taken(finetune, event, one):
    params = check(ROOT / "params.yaml")
    params = params.model_copy(update={"finetune": params.finetune.model_copy(update=finetune)})
    training = [{"event": event if epoch == 2 else ""} for epoch in range(4)]
    count = cells.Counts(train=600, val=120)
    eps = 16 / 255 if finetune.get("attack") == "single" else 0.0  # with ELLE-A's term, which `auto` leaves out
    few, many = (
        cells.finetune(
            cells.FORWARDS, count, params.finetune.model_copy(update={"attack": attack, "epochs": 4}), eps=eps
        )[0]
        for attack in ("single", "pgd")
    )
    assert few < many * (0.7 if eps else 0.5)
    assert cells.forwards(params, count, training) == pytest.approx(one * few + (1 - one) * many)


def test_our_own_pages_are_what_our_numbers_say():
    assert report.wrong(ROOT) == []


def test_the_sweep_of_the_page():
    plan = grid.load(MAIN, ROOT)
    assert len(plan.cells) == 4 * 12 * 3
    assert len(search.tries(plan)) == 4 * 2 * 4


def test_a_larger_pool_holds_the_smaller_one():
    images = {name: np.arange(40 * 3, dtype=np.uint8).reshape(40, 1, 1, 3) + shift for shift, name in enumerate("ab")}
    few, many = (small_sets.parts(images, small_sets.Cut(5, pool, val=3)) for pool in (4, 20))
    assert np.array_equal(few["x_test"], many["x_test"])
    assert np.array_equal(few["x_val"], many["x_val"])
    assert {x.tobytes() for x in few["x_train"]} < {x.tobytes() for x in many["x_train"]}
    assert [len(few[f"x_{part}"]) for part in ("train", "val", "test")] == [8, 6, 10]
    every = [x.tobytes() for part in ("train", "val", "test") for x in many[f"x_{part}"][: len(many[f"x_{part}"]) // 2]]
    assert len(every) == len(set(every))


def test_what_a_cell_cost_is_the_newest_that_is_known():
    some = [row("best", 0, "1111111110"), row("best", 1, "1111000000")]
    newer, cached = replace(some[0], forwards=2_000_000), replace(some[1], forwards=None, processor_seconds=None)
    found = cells.merged(some, [newer, cached])
    assert [(one.forwards, one.processor_seconds) for one in found] == [(2_000_000, 10.0), (1_000_000, 10.0)]


def test_seconds_of_a_resumed_training_are_not_those_of_the_whole():
    epochs = {"epochs": [{"seconds": 5.0}] * 2}
    assert cells.resumed(epochs | {"seconds": 8.0})  # the last attempt alone
    assert cells.resumed(epochs | {"seconds": 12.0, "resumed_after": 1})
    assert not cells.resumed(epochs | {"seconds": 12.0, "resumed_after": 0})


def test_equal_means_are_not_surely_different():
    one = numbers.Comparison("digits", "a", "b", 2, 0.0, 9, 0, 0.004, adjusted=0.004)
    assert not one.sure()
    assert replace(one, difference=0.1).sure()


def test_a_curve_of_one_batch_an_epoch_is_drawn_as_means():
    values = [0.0, None, *[1.0] * 10]
    found = dict(pictures.means(values))
    assert list(found) == [float(epoch) for epoch in range(1, 13)]
    assert found[1.0] == pytest.approx(3 / 4)  # of epochs 1 to 5, of which one has none
    assert found[5.0] == pytest.approx(7 / 8)
    assert found[12.0] == 1.0
