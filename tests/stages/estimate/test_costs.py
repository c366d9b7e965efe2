"""The counts of the estimate against the passes that the code really makes: a network counts the images it is shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import autolora
from autolora import Threat
from autolora.attacks.eps_curve import eps_curve
from autolora.attacks.versions import Budget, plan_of
from autolora.backbones.loading import load_backbone
from autolora.training.criticality import critical
from autolora.training.dial import judge
from stages.common.params import Data, Evaluate, Finetune, Merge
from stages.estimate import announce, attack_costs, costs
from stages.estimate.costs import Counts, Price
from stages.estimate.images import shared_out

EACH = Price(1, 1, 1)  # a pass costs one, of whatever kind
SEEN = [0]


class Counting(nn.Module):
    """A small network; every copy of it counts in the same place."""

    def __init__(self, classes: int = 4, sharp: float = 1.0) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.head, self.sharp = nn.Linear(8, classes), sharp

    def forward(self, x: Tensor) -> Tensor:
        SEEN[0] += len(x)
        return self.sharp * self.head(self.norm(self.conv(self.stem(x).relu())).mean((2, 3)))


@pytest.fixture
def seen():
    torch.manual_seed(2)  # a network drawn after other tests may answer one class only, and no attack works on that
    SEEN[0] = 0
    return lambda: SEEN[0]


def images(n: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, 8, 8, generator=draw), torch.arange(n) % classes


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        *((method, {"attack": "pgd"}) for method in ("autolora", "vanilla", "twins", "madry", "arow")),
        ("natural", {}),
        ("linear", {}),
        ("vanilla", {"attack": "single"}),
        ("madry", {"attack": "pgd", "weight_attack": 0.01}),
        ("madry", {"attack": "pgd", "augmentation": "interpolate"}),
        ("vanilla", {"attack": "pgd", "trains": "prominent"}),
    ],
)
@pytest.mark.parametrize("eps", ["1/255", "9/255"])
def test_an_epoch_makes_as_many_passes_as_are_counted(seen, method, changes, eps):
    """The same but for what is looked at once, at the start and the end. One step above 8/255 takes a term more."""
    counts, counted, threat = Counts(64, 32), [], Threat("linf", eps)
    for epochs in (1, 3):
        before = seen()
        autolora.finetune(
            Counting(), images(64), images(32), threat, method=method, epochs=epochs, batch_size=16,
            precision="float32", progress=False, **changes,
        )  # fmt: skip
        counted.append(seen() - before)
    one = (counted[1] - counted[0]) / 2
    assert (
        one - 2 * 16 <= costs.epoch(EACH, counts, Finetune(method=method, epochs=3, **changes), threat.eps) <= one
    )  # two gradients of one batch, for their cosine


def test_one_gradient_that_may_not_serve_is_counted_as_ten():
    auto, pgd = (costs.epoch(EACH, Counts(64, 32), Finetune(attack=attack)) for attack in ("auto", "pgd"))
    assert auto == pgd


def test_a_fine_tuning_is_its_epochs_and_the_twins():
    section, counts = Finetune(epochs=7), Counts(1000, 100)
    robust, twin = costs.finetune(EACH, counts, section)
    assert robust == 7 * costs.epoch(EACH, counts, section)
    assert twin == 7 * costs.epoch(EACH, counts, Finetune(epochs=7, method="natural"))
    assert costs.finetune(EACH, counts, Finetune(epochs=7, members=3)) == (3 * robust, twin)
    vanilla, blocks = (Finetune(epochs=12, method="vanilla", trains=trains) for trains in ("all", "blocks"))
    short = costs.epoch(EACH, counts, vanilla)  # two epochs of twelve, for the head alone and 5 + 4 + 3 blocks
    assert costs.finetune(EACH, counts, blocks, 5)[0] == costs.finetune(EACH, counts, vanilla)[0] + 13 * 2 * short


def test_a_first_pass_and_a_twin_that_teach_are_counted(seen):
    section, counted = {"method": "distill", "teacher": "first_pass", "natural_teacher": "twin", "attack": "pgd"}, []
    for epochs in (1, 3):
        before = seen()
        autolora.finetune(
            Counting(), images(64), images(32), Threat("linf", "1/255"), epochs=epochs, batch_size=16,
            precision="float32", progress=False, **section,
        )  # fmt: skip
        counted.append(seen() - before)
    one = (counted[1] - counted[0]) / 2
    expected = sum(costs.finetune(EACH, Counts(64, 32), Finetune(epochs=1, **section)))
    assert one - 4 * 16 <= expected <= one  # the cosine's gradients, of both
    robust, twin = costs.finetune(EACH, Counts(64, 32), Finetune(epochs=1, members=3, **section))
    assert (robust, twin) == (3 * (expected - twin) + 2 * twin, twin)


def test_a_point_of_the_dial(seen):
    x, y = images(20)
    judge(Counting().eval(), (255 * x).byte(), y, Threat("linf", "1/255"))
    assert costs.dial(EACH, Counts(0, 20), points=1) == seen()


def test_the_points_of_the_dial():
    assert costs.points_of_the_dial(Merge(), "autolora") == 10
    assert (
        costs.points_of_the_dial(Merge(), "vanilla") == 6
    )  # five toward the twin, and alpha 0 of the branch that is not there
    assert costs.points_of_the_dial(Merge(alpha=0.3, toward="natural"), "vanilla") == 7
    assert costs.points_of_the_dial(Merge(toward="critical"), "autolora") == 15
    assert costs.points_of_the_dial(Merge(soup="greedy"), "autolora", members=3) == 15


def test_the_critical_layer(seen):
    x, y = images(20)
    critical(Counting().eval(), ((255 * x).byte(), y), Threat("linf", "1/255"), size=8)
    assert costs.critical(EACH, Counts(20, 0), layers=3) == seen()


@pytest.mark.parametrize(("norm", "eps"), [("linf", "1/255000"), ("l2", 1e-4)])
@pytest.mark.slow
def test_autoattack_on_images_that_stand(seen, norm, eps):
    """A budget too small to change any answer: every image meets every attack to its end."""
    net, (x, _) = Counting(sharp=10).eval(), images(4)
    y = net(x).argmax(1)
    before = seen()
    report = autolora.autoattack(net, x, y, Threat(norm, eps), version="standard", batch_size=4, show=False)
    assert report.robust.all()
    plan, _ = plan_of("standard", norm, classes=4)
    assert attack_costs.autoattack(EACH, 4, plan, standing=1.0) == pytest.approx(seen() - before, rel=0.15)


def test_the_curve_over_eps(seen):
    net, (x, _) = Counting(sharp=10).eval(), images(4)
    y = net(x).argmax(1)
    before = seen()
    points = eps_curve(net, x, y, Threat("linf", "1/255000"), batch_size=4)
    stood = [point.accuracy for point in points[1:-1]]
    assert stood == [1.0] * 6  # and all fall at the last radius, at their first steps
    looks = seen() - before
    assert 4 * attack_costs.CURVE * 6 / 7 <= looks <= 4 * attack_costs.CURVE + 2 * 4


@pytest.mark.parametrize(("version", "expected"), [("rand", 2 * 20 * 101), ("plus", 2 * 5 * 101 + 5 * 650 + 5001)])
def test_versions_that_the_paper_does_not_use(version, expected):
    """`rand` asks twenty times for each gradient; FAB goes back from each of ten classes."""
    plan, _ = plan_of(version, "linf", 10)
    targeted = 9 * 101 + 9 * 100 * 2 if version == "plus" else 0
    assert sum(attack_costs.one_attack(EACH, step) for step in plan) == expected + targeted


def test_what_strong_adds():
    """Its two attacks, to their ends: MALT ranks three classes by a gradient each, and aims at all of them."""
    net, (x, _) = Counting(sharp=10).eval(), images(4)
    budget = Budget(steps=6, queries=8)
    how = {"version": "strong", "budget": budget, "batch_size": 4, "show": False}
    report = autolora.autoattack(net, x, net(x).argmax(1), Threat("l2", 1e-4), **how)
    assert report.robust.all()
    added = plan_of("strong", "l2", 4, budget)[0][4:]
    assert [4 * 2 * attack_costs.one_attack(EACH, step) for step in added] == [
        attack.forwards for attack in report.attacks[4:]
    ]  # a gradient is 2 F


def test_other_threats_cost_as_much_again():
    alone, l2, corrupted = (
        attack_costs.evaluate(EACH, 10, 10, "linf", Evaluate(also=also)) for also in ([], ["l2:0.5"], ["corruptions"])
    )
    plan, _ = plan_of("standard", "l2", 10)
    assert l2 - alone == attack_costs.both(EACH, 10, plan)
    assert corrupted - alone == 2 * 75 * 10


def test_images_that_fall_at_once_cost_the_first_attack():
    plan, _ = plan_of("standard", "linf", classes=10)
    assert attack_costs.autoattack(EACH, 50, plan, standing=0.0) == 50 * 101


def test_a_mixture_is_attacked_three_ways():
    """An APGD step costs two gradients by the surrogate, two by its own, and one and two looks from the robust one."""
    plan, _ = plan_of("fast", "linf", classes=10)
    assert attack_costs.mixture(EACH, 4, plan) == 4 * 101 * (1 + 9) * (2 + 2 + 3)


def test_how_many_are_attacked():
    assert attack_costs.attacked(Evaluate(images=100), 359) == 100
    assert attack_costs.attacked(Evaluate(images=500), 359) == 359
    assert attack_costs.attacked(Evaluate(images="all"), 359) == 359


def data(**keys) -> Data:
    return Data(source="folder", image_size=32, test_fraction=0.2, validation_fraction=0.1, **keys)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({None: 1000}, (720, 80, 200)),
        ({"train": 800, "test": 200}, (720, 80, 200)),
        ({"train": 700, "val": 100, "test": 200}, (700, 100, 200)),
        ({"train": 100, None: 1000}, (820, 80, 200)),
    ],
)
def test_images_are_shared_out_as_prepare_draws_them(given, expected):
    counts = shared_out(given, 3, data())
    assert (counts.train, counts.val, counts.test) == expected


def test_a_stage_that_is_surely_short_is_looked_at_briefly_and_a_long_one_says_so(capsys):
    model = load_backbone("resnet10t", classes=4, image_size=8, options={"channels": [4] * 4, "stem_width": 4})
    passed: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    announce.finetune(model, Counts(64, 32), Finetune(epochs=1), Threat("linf", "1/255"))
    short = len(passed)
    assert capsys.readouterr().err == ""
    announce.finetune(model, Counts(64, 32), Finetune(epochs=100_000), Threat("linf", "1/255"))
    assert len(passed) - short > 2 * short > 0
    assert "finetune: at most about " in capsys.readouterr().err


def test_one_gradient_that_is_asked_for_is_ten_at_most():
    """The guard may go back after its first look."""
    one, ten = (costs.finetune(EACH, Counts(64, 32), costs.at_most(Finetune(attack=a))) for a in ("single", "pgd"))
    assert one == ten


def test_rules_that_judge_each_epoch_pay_for_it():
    seldom, each = (
        costs.epoch(EACH, Counts(900, 100), Finetune(attack="single", reference=rule)) for rule in ("best", "paper")
    )
    looked = 100 * (10 + 2) + 32 * (11 + 2)
    assert each - 900 * (1 + 2 + 1) == looked
    assert seldom - 900 * (1 + 2 + 1) < looked / 2


@pytest.mark.parametrize(("norm", "gradients"), [("linf", 1), ("l2", 10)])
def test_a_head_first_is_attacked_through_the_whole_network(norm, gradients):
    counts, after = Counts(900, 100), Finetune(epochs=20, method="madry", start="robust_head")
    plain = costs.finetune(EACH, counts, after.model_copy(update={"start": "pretrained"}), norm=norm)[0]
    extra = costs.finetune(EACH, counts, after, norm=norm)[0] - plain
    train, judged = 10 * 900 * (1 + gradients), 10 * 100 * 12
    assert train < extra <= train + judged + 10 * 32 * 13
    assert costs.head_first(EACH, counts, 1, norm) > 0  # an epoch at least
