"""The card says what the files say, alone, safely, and to everybody."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from autolora.attacks.verdicts import ordered
from autolora.common.files import file_sha256, read_json, write_json
from stages.card.page import plots, write_card
from stages.card.plots import _rate_note
from stages.card.sections import _again
from stages.card.strips import strips
from stages.card.svg import Axis, Series, lines, percent, standalone
from stages.common.params import Gates
from stages.evidence.checks import in_words, sixteen, worst
from stages.evidence.files import ONNX, Evidence
from stages.register import description
from stages.tracking.mirror import metrics
from stages.tracking.serving import signature
from tests.registry.synthetic import CLASSES, add_also, around, attacked, make_flags, make_run


class Tree(HTMLParser):
    """Tags with their attributes, and the text that people read."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html.replace("\u202f", " "))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.text += "" if "style" in self.open else data


def page(folder):
    write_card(folder)
    return (folder / "reports/card.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return page(make_run(tmp_path_factory.mktemp("card") / "run"))


@pytest.fixture(scope="module")
def tree(html):
    return Tree(html)


def test_every_section_of_the_evidence_is_there(tree):
    text = " ".join(tree.text.split())
    for words in (
        "this model reads 90 % rightly as they are, and 60 % rightly whatever",  # clean, robust
        "95 % interval 53.1 to 66.5",
        "may move every colour value of every pixel by up to 16 of 255 grey levels",  # threat model in words
        "after apgd-t", "Class by class", "Accuracy over the radius", "The dial", "Gradient cosine", "Loss weights",
        "Halved after epoch 29, 41, 49, 53, 57", "What an attack looks like", "1 of 2 expectations hold",
        "3 of 1797 images look like another", "Sixteen checks", "The file is what was attacked", "Provenance",
    ):  # fmt: skip
        assert words in text, words


def test_the_card_names_a_soup_a_layer_and_a_mixture(tmp_path):
    folder = make_run(tmp_path / "run")
    record = read_json(folder / "reports/robustness.json")
    assert "soup" not in page(folder)
    made = {"soup": "greedy", "soup_members": "1 3", "critical_layer": "body.fc", "mix": "nuts"}
    write_json(folder / "reports/robustness.json", record | made)
    curve = folder / "reports/alpha_curve.csv"
    curve.write_text(curve.read_text().replace("branch", "critical"))
    text = " ".join(Tree(page(folder)).text.split())
    said = "from a greedy soup of member 1 3, toward a natural body.fc, mixed with the natural twin (MixedNUTS)"
    assert said in text
    assert "toward itself with its least critical layer tuned naturally (alpha 1)" in text


def test_cost_appears_where_it_was_measured(tmp_path):
    folder = make_run(tmp_path / "run")
    assert 'id="cost"' not in page(folder)
    (folder / "reports/timing").mkdir()
    record = {"seconds": 7200, "peak_memory_mb": 900, "machine": "m", "images_per_second": 1234.5, "gpu_hours": 2}
    write_json(folder / "reports/timing/finetune.json", record)
    text = Tree(page(folder)).text
    assert "2.0 h of work, 2.00 GPU hours of it; the start of Python and its imports come on top" in text
    assert "1,234 images/s" in text
    training = folder / "reports/training.csv"
    write_json(
        folder / "reports/timing/finetune.json", record | {"made": {"reports/training.csv": file_sha256(training)}}
    )
    assert "2.0 h of work" in Tree(page(folder)).text
    training.write_text(training.read_text() + "\n")  # another run's, from DVC's cache
    write_json(folder / "reports/timing/merge.json", record | {"seconds": 60})
    text = Tree(page(folder)).text
    assert "60.0 s of work" in text
    assert "Not counted: finetune, whose outputs came from DVC's cache" in text


def test_other_threats_and_corruptions_where_they_were_measured(html, tmp_path):
    folder = add_also(make_run(tmp_path / "run"))
    found = Tree(page(folder))
    record, text = read_json(folder / "reports/robustness.json"), " ".join(found.text.split())
    assert 'id="beyond"' not in html
    said = {"number": 9, "name": "black box does not beat white box", "verdict": "warn", "detail": "planted"}
    record["also"][0]["objections"].append(said)
    write_json(folder / "reports/robustness.json", record)
    assert "L2 0.5: black box beats white box: planted" in page(folder)
    names = ("L2 0.5", "both threats", "corruptions, the mean of 15 at 5 severities")
    for row, name in zip(record["also"], names):
        low, high = (f"{100 * v:.1f}" for v in row["ci95"])
        twin = percent(row["baseline"]["accuracy"])
        assert f"{name}{percent(row['accuracy'])}{low} to {high}{twin}".replace("\u202f", " ") in text
    fog = next(kind for kind in record["also"][2]["kinds"] if kind["name"] == "fog")
    shares = [fog["accuracy"], *fog["by_severity"], fog["baseline"]]
    assert f"fog{''.join(f'{100 * share:.0f}' for share in shares)}" in text
    assert "strengths of CIFAR-10-C" in text
    assert "Expected robustness, the mean over all radii up to twice that of the threat model: " in text
    assert metrics(Evidence(folder))["also_l2_0.5_low"] == record["also"][0]["ci95"][0]
    assert metrics(Evidence(folder))["expected_robustness"] == 0.5
    assert f"{100 * record['also'][1]['accuracy']:.1f} % under all threats" in description(Evidence(folder))


def test_nothing_is_fetched_from_anywhere(html, tree):
    for tag, attributes in tree.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (tag, value)
    assert "<script" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_links_lead_somewhere_and_ids_are_unique(tree):
    ids = [a["id"] for _, a in tree.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in tree.tags:
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids
        for target in attributes.get("aria-labelledby", "").split():
            assert target in ids


def test_pictures_and_charts_have_words(tree):
    assert all(a.get("alt") for tag, a in tree.tags if tag == "img")
    charts = [a for tag, a in tree.tags if tag == "svg"]
    assert len(charts) > 8
    assert all(a.get("aria-hidden") or a.get("aria-label") or a.get("aria-labelledby") for a in charts)
    assert ("html", {"lang": "en"}) in tree.tags


def test_a_hostile_class_name_stays_text(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "reports/robustness.json"
    record = read_json(path)
    record["by_class"][3]["class"] = '<img src=x onerror="alert(1)">'
    write_json(path, record)
    html = page(folder)
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


def test_a_class_without_an_attacked_image_moves_no_name(tmp_path):
    """As `evaluate` leaves it when few images are attacked: one class less in `by_class`, as many logits as before."""
    folder = make_run(tmp_path / "run")
    path = folder / "reports/robustness.json"
    record = read_json(path)
    record["by_class"].pop(0)
    write_json(path, record)
    evidence, data = Evidence(folder), np.load(folder / "models/adversarial.npz")
    assert "10 logits" in page(folder)
    assert evidence.classes == CLASSES
    shown = strips(evidence)
    assert {example.truth for example in shown} <= {CLASSES[label] for label in data["y"][data["found"]]}
    assert signature(evidence.path(ONNX), len(evidence.classes)).outputs.inputs[0].shape == (-1, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "fast"}, "This is not the standard attack"),
        ({"failed_check": 8}, "14 of 16 checks pass, 1 warn, 1 fail"),
        ({"flips": 3}, "ONNX: 3 labels flip"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, options, words):
    assert words in " ".join(Tree(page(make_run(tmp_path / "run", **options))).text.split())


def test_a_check_of_several_parts_counts_once_by_its_worst():
    rows = [
        c.as_record()
        for c in ordered([*attacked().checks, *around(make_flags(np.random.default_rng(0), 9, 1, 1, "a"))])
    ]
    assert len(rows) > len({r["number"] for r in rows}) == 16  # a real attack gives several parts; so did early records
    assert in_words(sixteen(rows)) == "15 of 16 checks pass, 1 warn"  # few images
    spoilt = [r | {"verdict": "fail"} if r["name"] == "buffers unmoved" else r for r in rows]
    assert in_words(sixteen(spoilt)) == "14 of 16 checks pass, 1 warn, 1 fail"
    assert worst(sixteen(spoilt)) == "fail"
    unknown = [r | {"verdict": "not run"} if r["name"] == "buffers unmoved" else r for r in rows]
    assert sixteen(unknown)[0].verdict == "pass"
    assert worst(sixteen([r for r in rows if r["number"] not in (3, 11)])) == "warn"  # one is not there


def test_many_classes_show_the_weakest(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "reports/robustness.json"
    record = read_json(path)
    record["by_class"] = [{"class": f"c{i}", "n": 2, "clean": 0.9, "robust": i / 100} for i in range(100)]
    write_json(path, record)
    html = page(folder)
    chart = html[html.index("accuracy-by-class-t") : html.index("Figures of every class")]
    assert ">c0<" in chart
    assert ">c29<" in chart
    assert ">c30<" not in chart
    assert ">c99<" in html  # in the table


def test_a_card_without_a_twin_without_adversarial_examples_and_without_halvings(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "reports/robustness.json"
    write_json(path, read_json(path) | {"baseline": None, "mcnemar": None})
    training = folder / "reports/training.csv"
    training.write_text(training.read_text().replace("halved+restored", ""))
    examples = folder / "models/adversarial.npz"
    data = dict(np.load(examples))
    np.savez(examples, **data | {"found": np.zeros_like(data["found"])})
    text = Tree(page(folder)).text
    assert "No halving was needed." in text
    assert "natural twin," not in text


def test_another_norm_and_another_input_are_said(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "reports/robustness.json"
    l2 = {"norm": "l2", "eps": 0.5, "eps_255": 127.5, "text": "l2:0.5"}
    write_json(path, read_json(path) | {"threat": l2})
    export = folder / "reports/export.json"
    write_json(export, read_json(export) | {"input": "uint8"})
    text = " ".join(Tree(page(folder)).text.split())
    assert "within L2 0.5" in text
    assert "up to 0.5 in Euclidean length" in text
    assert "127.5" not in text
    assert "bytes from 0 to 255" in text


def test_plots_are_files_of_their_own(tmp_path):
    for name, svg in plots(Evidence(make_run(tmp_path / "run"))).items():
        root = ElementTree.fromstring(standalone(svg))
        assert root.tag == "{http://www.w3.org/2000/svg}svg", name


def test_axes_are_where_they_say():
    axis = Axis(0, 10, 100, 200)
    assert [axis(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert axis.ticks(5) == [0, 2, 4, 6, 8, 10]
    log = Axis(1e-5, 1e-2, 0, 30, log=True)
    assert [log(v) for v in (1e-5, 1e-3, 1e-2)] == [0, 20, 30]
    assert log.ticks() == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    chart = lines("t", "w", [Series("s", "robust", [0, 1], [0.0, 1.0])], "x")
    assert re.findall(r'points="([^"]+)"', chart) == ["46.0,210.0 388.0,20.0"]
    assert [percent(v) for v in (0.6, 0.605, 1)] == ["60\u202f%", "60.5\u202f%", "100\u202f%"]


def test_a_rate_that_cools_down_is_said_to(tmp_path):
    folder = make_run(tmp_path / "run")
    training = folder / "reports/training.csv"
    rows = list(csv.DictReader(training.read_text().splitlines()))
    for row in rows:
        late = max(0, int(row["epoch"]) - 56)
        row |= {"event": "", "lr": str(0.01 * (1 - late / 5))}
    with open(training, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert "No halving was needed; it cools down over the last 4 epochs." in Tree(page(folder)).text


@pytest.mark.parametrize(
    ("rates", "halved", "said"),
    [
        ((1.0, 0.5), 0, "No halving was needed; it cools down over the last epoch."),
        ((1.0, 1.0, 0.5), 2, "Halved after epoch 2; the best weights so far were put back."),
        ((1.0, 1.0), 0, "No halving was needed."),
    ],
)
def test_what_is_said_of_a_short_training_s_rate(rates, halved, said):
    rows = [
        {"epoch": str(n), "lr": str(rate), "event": "halved" if n == halved else ""} for n, rate in enumerate(rates, 1)
    ]
    assert _rate_note(rows, {}) == said


def test_autoattack_is_marked_where_the_quick_attack_leaves_more(tmp_path):
    folder = make_run(tmp_path / "run")
    html = page(folder)
    chart = html[html.index('aria-labelledby="accuracy-over-the-radius-t') :]
    marked = re.findall(r'class="hollow (\w+)"[^>]*><title>([^<]+)</title>', chart[: chart.index("</svg>")])
    assert marked == [("robust", "AutoAttack: 60\u202f% at 16"), ("natural", "AutoAttack: 2\u202f% at 16")]
    assert "it leaves 60 %, the diamond" in " ".join(Tree(html).text.split())


def test_a_check_that_warns_is_named_by_what_is_wrong(tree):
    text = " ".join(tree.text.split())
    assert "too few images" in text
    assert "enough images:" not in text


def test_another_recipe_is_said_in_words(tmp_path):
    folder = make_run(tmp_path / "run")
    tuned = {
        "method": "vanilla", "reference": "best", "collapsed": [7], "collapsed_before": {"first_pass": [2, 5]},
        "members": {"runs": [{"collapsed": [7]}, {}, {"collapsed": [4], "harder": [9]}]}, "harder": [25],
        "axes": {"eps_schedule": "ramp", "weight_attack": 0.005}, "attack": "single", "first_rate": 0.0807,
        "features_moved": 2.2,
        "head": [
            {"epoch": 1, "val_robust": None, "event": ""}, {"epoch": 2, "val_robust": 0.1, "event": "best"},
            {"epoch": 3, "val_robust": 0.3, "event": "cooling+best"}, {"epoch": 4, "val_robust": 0.2, "event": ""},
        ],
        "blocks": {"chosen": ["layer2.0"], "tried": [{"blocks": []}, {"blocks": ["layer2.0"]}]},
        "recipe": {"name": "awp2020", "paper": "Adversarial weight perturbation (NeurIPS 2020)."},
    }  # fmt: skip
    (folder / "models/finetuned").mkdir(parents=True, exist_ok=True)
    write_json(folder / "models/finetuned/finetuned.json", tuned)
    robustness = folder / "reports/robustness.json"
    write_json(robustness, read_json(robustness) | {"recipe_but": "toward critical"})
    text = " ".join(Tree(page(folder)).text.split())
    for words in (
        "tuned adversarially from a pre-trained backbone (TRADES, ICML 2019)",
        "vanilla, reference best, eps schedule ramp, weight attack 0.005; the head alone first, 4 epochs: 10 % of the",
        "of the validation images withstood PGD, then 30 %; trained: layer2.0, head, after 2 short runs; one gradient",
        "given up after epoch 7, in the first pass after epoch 2 and 5, by member 3 after epoch 4; training images,",
        "learnt by heart, were varied harder (IDBH) after epoch 25, by member 3 after epoch 9",
        "one gradient of the attack an image, first learning rate 0.0807; the backbone was not robust before",
        "so eps grew from 0 (an attacker moved its features by 2.2 of the squared distance between two images)",
        "awp2020, but with toward critical. Adversarial weight perturbation (NeurIPS 2020).",
    ):
        assert words in text, words
    tuned |= {"method": "natural"}
    write_json(folder / "models/finetuned/finetuned.json", tuned)
    assert "tuned without an attack from a pre-trained backbone" in " ".join(Tree(page(folder)).text.split())


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        (
            {"method": "autolora", "reference": "best"},
            "searched no hyper-parameter: the learning rate found itself and",
        ),
        ({"method": "madry", "reference": "best"}, "no hyper-parameter: the learning rate found itself."),
        ({"method": "vanilla", "reference": "paper"}, "the learning rate is the published one"),
        ({"method": "twins", "reference": "paper", "axes": {"rate": 0.03}}, "was set by hand: whether it was searched"),
    ],
)
def test_the_card_claims_no_more_than_the_run_knows(tmp_path, tuned, said):
    folder = make_run(tmp_path / "run")
    known = {"attack": "pgd", "first_rate": 0.03}
    (folder / "models/finetuned").mkdir(parents=True, exist_ok=True)
    write_json(folder / "models/finetuned/finetuned.json", known | tuned)
    assert said in " ".join(Tree(page(folder)).text.split())


def test_an_alpha_that_was_set_was_not_chosen(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "was chosen on" in " ".join(Tree(page(folder)).text.split())
    lock = folder / "dvc.lock"
    stages = yaml.safe_load(lock.read_text()) if lock.is_file() else {"stages": {}}
    stages["stages"]["merge"] = {"params": {"params.yaml": {"merge": {"alpha": 0.1}}}}
    lock.write_text(yaml.safe_dump(stages))
    assert "was set in params.yaml. The curve was measured on" in " ".join(Tree(page(folder)).text.split())


def locked(folder, **sections):
    lock = folder / "dvc.lock"
    lock.write_text(yaml.safe_dump({"stages": {"finetune": {"params": {"params.yaml": sections}}}}))


def tuned_so(folder, **tuned):
    (folder / "models/finetuned").mkdir(parents=True, exist_ok=True)
    write_json(folder / "models/finetuned/finetuned.json", {"attack": "pgd", "first_rate": 0.03} | tuned)
    return " ".join(Tree(page(folder)).text.split())


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        (
            {"reference": "best", "best_epoch": 3},
            "The last epoch, 3, that was not surely worse than one before it in",
        ),
        ({"reference": "paper", "best_epoch": 3}, "The epoch, 3, with the best robust validation accuracy ships."),
        ({"reference": "paper", "method": "natural"}, "The epoch with the best clean validation accuracy ships."),
    ],
)
def test_which_epoch_ships_is_said_by_the_rule(tmp_path, tuned, said):
    assert said in tuned_so(make_run(tmp_path / "run"), **{"method": "autolora"} | tuned)


def test_a_soup_ships_as_a_soup(tmp_path):
    folder = make_run(tmp_path / "run")
    record = folder / "reports/robustness.json"
    write_json(record, read_json(record) | {"soup": "greedy", "soup_members": "1 and 3"})
    assert "what ships is a greedy soup of them" in tuned_so(folder, method="autolora", reference="best")


def test_what_is_true_of_autolora_alone_is_said_of_it_alone(tmp_path):
    """A network from fresh weights, tuned without an attack: no branch, nothing pre-trained, trained for no threat."""
    folder = add_also(make_run(tmp_path / "run"))
    branch = "the low-rank branch takes the natural gradient"
    text = tuned_so(folder, method="autolora", reference="best")
    assert branch in text
    assert "this model was trained for the first row alone" in text
    locked(folder, backbone={"weights": None})
    text = tuned_so(folder, method="natural", reference="best")
    assert branch not in text
    assert "from fresh weights" in text
    assert "this model was trained for none of them" in text


def test_with_one_point_on_the_dial_nothing_was_chosen(tmp_path):
    folder = make_run(tmp_path / "run")
    curve = folder / "reports/alpha_curve.csv"
    head, *rows = curve.read_text().splitlines()
    toward, _, *figures, _ = rows[0].split(",")
    curve.write_text("\n".join([head, ",".join([toward, "0", *figures, "1"])]) + "\n")
    text = " ".join(Tree(page(folder)).text.split())
    assert "There was nothing to mix: the network ships as it was tuned." in text
    assert "is all there is; it was measured on" in text


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        ({"method": "vanilla", "reference": "paper"}, "Its course was fixed before the first epoch."),
        ({"method": "autolora", "reference": "slow_start"}, "Its course was fixed before the first epoch."),
        ({"method": "vanilla", "reference": "best"}, "No halving was needed."),
    ],
)
def test_a_course_that_was_fixed_was_not_halved(tuned, said):
    rows = [{"epoch": str(n), "lr": rate, "event": ""} for n, rate in enumerate(("0.01", "0.01", "0.01"), 1)]
    assert _rate_note(rows, tuned) == said


def test_the_baselines_schedule_is_theirs():
    from autolora.training.controllers import StepRate
    from autolora.training.objectives import METHODS
    from stages.card.plots import STEPPED

    assert set(STEPPED) == {name for name, method in METHODS.items() if method.controller is StepRate}


def test_all_of_the_test_part_is_not_a_draw(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "of the test part, drawn evenly from the classes" in " ".join(Tree(page(folder)).text.split())
    quality = folder / "data/quality.json"
    record = read_json(quality)
    write_json(quality, record | {"images": record["images"] | {"test": 200}})
    assert "all 200 of the test part" in " ".join(Tree(page(folder)).text.split())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "No revision of the code is known"),
        ({"git_revision": "c0ffee", "git_dirty": "yes"}, "The code was not quite that of this revision"),
        ({"git_revision": "c0ffee", "git_dirty": "no"}, "gives back the same files on such a machine"),
    ],
)
def test_the_same_files_again_is_said_only_of_a_commit(source, said):
    assert said in _again(source)


def test_all_gates_are_named():
    from stages.card.what_it_is import _gates

    asked = Gates(clean=0.8, robust=0.3, lower=0.25, images=5_000, threat="linf:32/255").model_dump()
    assert _gates(asked).replace("\u202f", " ") == (
        "at least 80 % clean and 30 % robust (the interval's lower end 25 %) of 5,000 images or more, "
        "by the standard attack at linf:32/255 or a larger radius"
    )


def test_iat_is_not_called_plain_training():
    from stages.card.what_it_is import _published

    assert _published({"method": "madry", "axes": {"augmentation": "interpolate"}}) == " (IAT, AISec 2019)"
    assert _published({"method": "madry"}) == " (PGD training, ICLR 2018)"


def test_rates_are_written_where_there_is_room_for_each():
    """A rate that cools takes twenty values, which lie close together at first."""
    rates = [0.08 * (1 - step / 20) for step in range(20)]
    drawn = lines("Learning rate", "", [Series("rate", "accent", [*map(float, range(20))], rates)], "epoch",
                      y_range=None, y_text=lambda rate: f"rate {rate:.4f}", log=True, steps=True)  # fmt: skip
    labels = [(float(y), text) for y, text in re.findall(r'y="([\d.]+)" text-anchor="end">(rate [\d.]+)<', drawn)]
    heights = sorted(y for y, _ in labels)
    assert all(b - a >= 16 for a, b in pairwise(heights))
    assert "rate 0.0800" in [text for _, text in labels]
    assert len(labels) > 5
