"""Every check, with its fault planted: each must be caught, and must be silent on the sound network."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autolora import Threat, autoattack
from autolora.attacks import apgd, checks, pgd
from autolora.attacks.apgd_l1 import to_ball
from autolora.attacks.autoattack import black_box
from autolora.attacks.engine.file_network import FileNetwork
from autolora.attacks.engine.network import Averaged, Network, fooled
from autolora.attacks.engine.prepare import full_precision
from autolora.attacks.engine.slots import Slots
from autolora.attacks.report import AttackResult, Report
from autolora.attacks.verdicts import NAMES, Check, CheckFailed, one_each
from autolora.attacks.versions import Budget
from tests.attacks import colours
from tests.attacks.nets import Linear, images, smooth
from tests.export.quantiser import quantised_file

THREAT = Threat("linf", 0.05)


def attack(net, x: Tensor | None = None, threat: Threat = THREAT, version: str = "fast", **more) -> Report:
    x = images(12) if x is None else x
    return autoattack(
        net, x, smooth(4)(images(12)).argmax(1), threat, version=version, batch_size=12, show=False, **more
    )


def failed(net, **more) -> set[int]:
    with pytest.raises(CheckFailed) as caught:
        attack(net, **more)
    return {c.number for c in caught.value.checks if c.verdict == "fail"}


@pytest.fixture(scope="module")
def sound() -> Report:
    return attack(smooth(4), version="fast")


def test_a_sound_network_passes(sound: Report) -> None:
    assert {c.number for c in sound.checks} == set(NAMES)
    assert [c.number for c in sound.checks] == sorted(c.number for c in sound.checks)
    assert not [c for c in sound.checks if c.verdict == "fail"]
    assert {c.number for c in sound.checks if c.verdict == "warn"} == {11}  # twelve images are few
    assert "stand" in sound.verdict
    assert "warn: enough images" in sound.verdict  # the check's name, as recorded
    assert "warn: too few images" in sound.in_words


def test_train_mode_is_refused() -> None:
    net = nn.Sequential(smooth(4), nn.Dropout(0.0))
    net.eval()[1].train()
    assert failed(net) == {1}


def test_moving_buffers_are_seen() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = smooth(4)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return self.body(x)

    assert 1 in failed(Counting().eval())


def test_the_black_box_needs_eval_mode_too() -> None:
    net, x = nn.Sequential(smooth(4), nn.Dropout(0.0)), images(12)
    net.train()
    with pytest.raises(CheckFailed, match="check 1, eval mode"):
        black_box(net, x, smooth(4)(x).argmax(1), THREAT, queries=3, show=False)
    assert net.training
    report = black_box(lambda p: smooth(4)(p), x, smooth(4)(x).argmax(1), THREAT, queries=3, show=False)
    assert [c.verdict for c in report.checks if c.number == 1] == ["not run", "not run"]  # nothing can be seen of it


def test_one_image_says_nothing_of_a_batch() -> None:
    x = images(1)
    report = black_box(lambda p: smooth(4)(p), x, smooth(4)(x).argmax(1), THREAT, queries=3, show=False)
    assert [c.verdict for c in report.checks if c.number == 2] == ["not run"]


@pytest.mark.parametrize(
    ("alone", "verdict"), [([2.0, 1.0001], "pass"), ([2.0, 1.001], "fail"), ([0.99999, 1.0], "fail")]
)
def test_logits_depend_on_the_batch_beyond_rounding(alone: list[float], verdict: str) -> None:
    """By a twentieth of a thousandth of the largest, by ten times as much, and by little that is another class."""
    together = [2.0, 1.0] if alone[0] > 1 else [1.0, 0.99999]
    answers = lambda x: torch.tensor([alone if len(x) == 1 else together]).expand(len(x), 2)  # noqa: E731
    assert checks.alone_as_in_batch(answers, images(8), randomised=False).verdict == verdict


def test_logits_that_depend_on_the_batch() -> None:
    net = smooth(4)
    assert 2 in failed(lambda x: net(x - x.mean(0, keepdim=True) + 0.5))


@pytest.mark.parametrize("change", [lambda x: x * 255, lambda x: x - 0.5, lambda x: x * torch.nan])
def test_pixels_outside_the_box(change) -> None:
    assert failed(smooth(4), x=change(images(12))) == {3}


def test_pixels_divided_twice() -> None:
    report = checks.pixels(images(12) / 255)
    assert report.verdict == "warn"
    assert checks.pixels(images(12) * 0.99).verdict == "warn"


def test_eps_in_grey_levels() -> None:
    with pytest.raises(ValueError, match="8/255"):
        Threat("linf", 8)
    threat = Threat("linf", 0.1)
    object.__setattr__(threat, "eps", 8.0)
    assert failed(smooth(4), threat=threat) == {4}


def test_points_outside_the_ball(sound: Report) -> None:
    x = images(12)
    assert checks.inside(x + 0.06 * (x < 0.5), x, THREAT).verdict == "fail"
    assert checks.inside(x * torch.nan, x, THREAT).verdict == "fail"
    assert checks.inside(sound.adversarial, x, THREAT).verdict == "pass"


def test_a_broken_projection_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apgd, "project", lambda p, x, threat: p.clamp(0, 1))
    assert 5 in failed(smooth(4))


@pytest.mark.parametrize(("norm", "eps", "far"), [("linf", 0.05, 1.0001), ("l2", 12.0, 1.00002), ("l1", 900.0, 1.0001)])
def test_rounding_is_no_fault_at_any_size(norm: str, eps: float, far: float) -> None:
    """A float32 norm of 150,000 pixels is off by a millionth."""
    x, threat = images(3, side=224) * 0.4 + 0.3, Threat(norm, eps)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    points = x + to_ball(x, noise, torch.full((3,), eps)) if norm == "l1" else pgd.project(x + noise, x, threat)
    assert checks.inside(points, x, threat).verdict == "pass"
    assert checks.inside((x + (points - x) * far).clamp(0, 1), x, threat).verdict == "fail"


def test_adversarial_images_that_are_none(sound: Report) -> None:
    wrong = dataclasses.replace(sound, fooled=sound.y)
    assert checks.truly_broken(wrong).verdict == "fail"
    assert checks.truly_broken(sound).verdict == "pass"


def test_probabilities_instead_of_logits() -> None:
    net = smooth(4)
    assert 6 in failed(lambda x: net(x).softmax(1))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_logits_that_are_no_numbers(value: float) -> None:
    net = smooth(4)
    with pytest.raises(CheckFailed, match="check 6, logits are numbers: NaN or infinite at 12 of 12 images"):
        attack(lambda p: net(p).index_fill(1, torch.tensor([3]), value))


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_beyond_the_classes_are_named(label: int) -> None:
    x = images(12)
    y = smooth(4)(x).argmax(1)
    y[3] = label
    with pytest.raises(ValueError, match=r"labels from -?\d to \d, and the network answers for 4 classes"):
        autoattack(smooth(4), x, y, THREAT, version="fast", show=False)


def test_a_random_network() -> None:
    net = smooth(4)
    assert 7 in failed(lambda x: net(x + 0.01 * torch.randn_like(x)))


@pytest.mark.parametrize(
    "mask",
    [
        lambda net: lambda x: net(x) * 1e4,  # saturated: softmax is exactly one
        lambda net: lambda x: net((x * 8).round() / 8),  # quantised input
        lambda net: lambda x: net(x).detach() + 0 * x.flatten(1).sum(1, keepdim=True),
        lambda net: lambda x: net(x).detach(),
        lambda net: torch.inference_mode()(net),
        lambda net: lambda x: net(x) + (net(x) - net(x)) / 0 if x.requires_grad else net(x),  # NaN
        lambda net: lambda x: net(x if on_the_grid(x) else x.detach() + 0 * x),  # only where no attack goes
    ],
)
def test_masked_gradients(mask) -> None:
    assert 8 in failed(mask(smooth(4)))


def on_the_grid(x: Tensor) -> bool:
    return bool((x * 255 - (x * 255).round()).abs().max() < 1e-3)


def test_a_pixel_without_a_slope_spoils_no_other() -> None:
    """Gamma correction: infinitely steep at black, where the chain rule says NaN."""
    net, x = smooth(4), images(40)
    x[:, :, ::2] = 0

    def corrected(p: Tensor) -> Tensor:
        return net(p.pow(1 / 2.2))

    y = corrected(x).argmax(1)
    report = autoattack(corrected, x, y, Threat("linf", 0.01), version="fast", show=False)
    assert report.adversarial.isfinite().all()
    assert report.robust_accuracy < 0.9
    assert {c.verdict for c in report.checks if c.number in (5, 8, 10)} == {"pass"}
    climbed = checks.climb(Network(corrected, 40), x, y, Threat("l2", 0.2), 20, 0)
    assert climbed.left < 0.9
    assert climbed.gain > 0


def test_a_point_that_is_no_image_fools_nobody() -> None:
    points = torch.full((3, 1, 2, 2), 0.5)
    points[1, 0, 1, 1], points[2, 0, 0, 0] = torch.nan, torch.inf
    answers = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    assert fooled(answers, torch.tensor([0, 0, 0]), points).tolist() == [True, False, False]


def test_no_answer_is_a_wrong_one() -> None:
    """Off the grid of grey levels this network says NaN, of which argmax makes class 0."""
    net, x = smooth(4), images(40)

    def silent(p: Tensor) -> Tensor:
        on_grid = ((p * 255 - (p * 255).round()).abs() < 1e-3).flatten(1).all(1)
        return net(p) + torch.where(on_grid, 0.0, torch.nan)[:, None]

    report = black_box(silent, x, net(x).argmax(1), Threat("linf", 0.0101), queries=20, show=False)
    assert report.robust_accuracy == 0
    assert report.adversarial.isfinite().all()


def test_a_black_box_that_beats_the_white_box() -> None:
    """Gradients that point nowhere, without being zero: only Square finds what is there."""
    net = smooth(4)

    class Misled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:
            return torch.ones_like(g) * 1e-3

    report = Report
    found: list = []
    with pytest.raises(CheckFailed) as caught:  # check 10 objects as well: this attack climbs nowhere
        report = attack(lambda x: net(Misled.apply(x)), version="standard", threat=Threat("linf", 0.15))
    found = caught.value.checks if report is Report else report.checks
    assert {c.number: c.verdict for c in found}[9] == "warn"


def test_an_attack_made_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apgd.APGD, "move", lambda self, s, origin, gradient, first: origin)
    assert 10 in failed(smooth(4))


SOUND = {"half": (0.8, 1.0), "short": (0.5, 1.0), "twice": (0.3, 1.0), "far": (0.0, 1.0), "long": (0.49, 1.0)}


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({}, ""),
        ({"far": (0.2, 1.0)}, "20 % stand a radius at which nothing can"),
        ({"twice": (0.7, 1.0)}, "a larger radius helps"),
        ({"half": (0.3, 1.0)}, "a larger radius helps"),
        ({"long": (0.2, 1.0)}, "50 steps break much more than 20"),
        ({"long": (0.49, 0.0)}, "the loss does not rise"),
    ],
)
def test_each_condition_of_an_attack_that_works(
    sound: Report, monkeypatch: pytest.MonkeyPatch, fault: dict, text: str
) -> None:
    """(share that stands, rise of the loss) of each of the five attacks, one of them made odd."""
    told = SOUND | fault
    names = {(0.025, 20): "half", (0.05, 20): "short", (0.1, 20): "twice", (0.5, 20): "far", (0.05, 50): "long"}

    def climb(network, x: Tensor, y: Tensor, threat: Threat, steps: int, seed: int) -> checks.Climb:
        standing, gain = told[names[threat.eps, steps]]
        return checks.Climb(torch.arange(len(x)) >= round(standing * len(x)), gain)

    monkeypatch.setattr(checks, "climb", climb)
    right, stand = torch.ones(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    ids = [str(i) for i in range(100)]
    report = dataclasses.replace(sound, y=torch.zeros(100, dtype=torch.long), clean=right, robust=stand, ids=ids)
    check = checks.attack_works(Network(smooth(4), 64), images(100), report)
    assert (check.verdict, check.detail) == ("fail", text) if fault else check.verdict == "pass"


def test_permuted_labels() -> None:
    """Labels that are not those of the images: nothing is right, so nothing can be said."""
    net, x = smooth(4), images(12)
    with pytest.raises(CheckFailed, match="labels are those of the images: 0 of 12 images"):
        autoattack(net, x, (net(x).argmax(1) + 1) % 4, THREAT, version="fast", show=False)
    x = images(200)
    y = net(x).argmax(1)
    many = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    report = autoattack(net, x, y[many], THREAT, version="fast", show=False)
    assert report.clean_accuracy > 0.2
    assert any("labels are those of the images" in warning for warning in report.warnings)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_random_network_is_judged_by_many_passes(seed: int) -> None:
    """Noise twelve times the radius: what one pass says of an image is chance, and no fault of the attack."""
    net, x, draw = Linear(4), images(16), torch.Generator().manual_seed(seed)

    def noisy(p: Tensor) -> Tensor:
        return net(p + 0.05 * torch.randn(p.shape, generator=draw))

    how = {"version": "rand", "budget": Budget(steps=30), "batch_size": 16, "show": False}
    report = autoattack(noisy, x, net(x).argmax(1), Threat("linf", "1/255"), **how)
    found = {c.name: c for c in report.checks}
    assert found[NAMES[10]].verdict == "pass"
    assert "many passes" in found["adversarial images are misclassified"].detail


@pytest.mark.slow
def test_an_attack_made_weak_on_a_random_network(sound: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apgd.APGD, "move", lambda self, s, origin, gradient, first: origin)
    net = smooth(4)
    x = images(12)
    y = net(x).argmax(1)
    stands = torch.ones(12, dtype=torch.bool)
    report = dataclasses.replace(sound, y=y, clean=stands, robust=stands, ids=[str(i) for i in range(12)])
    network = Averaged(lambda p: net(p + 0.01 * torch.randn_like(p)), 12, 20)
    assert checks.attack_works(network, x, report, randomised=True).verdict == "fail"


def test_successes_that_get_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attack climbs as it should, and what surrounds it forgets what it found."""
    step = Slots.step

    def forgets(slots: Slots) -> None:
        step(slots)
        slots.state["found"][:] = False

    monkeypatch.setattr(Slots, "step", forgets)
    net, x = smooth(4), images(12)
    with pytest.raises(CheckFailed, match="reported to stand, and fall to APGD-CE alone"):
        autoattack(net, x, net(x).argmax(1), THREAT, version="fast", show=False)


def test_probes_are_of_all_classes_and_right() -> None:
    """A set sorted by class, of which the network knows only the last."""
    net, x = smooth(4), images(130)
    y = net(x).argmax(1)
    y[:64] = (y[:64] + 1) % 4
    report = autoattack(net, x, y, THREAT, version="fast", show=False)
    assert next(c for c in report.checks if c.name == NAMES[10]).verdict == "pass"


def test_probes_of_a_sorted_set_are_of_all_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[list[int]] = []
    none = checks.Climb(torch.zeros(64, dtype=torch.bool), 1.0)
    monkeypatch.setattr(checks, "climb", lambda network, x, y, *_: probed.append(y.tolist()) or none)
    y, right = torch.arange(400) // 100, torch.ones(400, dtype=torch.bool)
    report = SimpleNamespace(
        threat=THREAT, seed=0, ids=[str(i) for i in range(400)], y=y, clean=right & (y != 2), robust=right
    )
    checks.attack_works(Network(smooth(4), 64), torch.zeros(400, 1, 1, 1), report)
    assert len(probed) == 5
    assert all((len(labels), set(labels)) == (64, {0, 1, 3}) for labels in probed)


def test_a_sure_network_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are too small to be squared in float32, and still have a direction."""
    net, x = smooth(4), images(16)
    report = autoattack(lambda p: 60 * net(p), x, net(x).argmax(1), Threat("l2", 0.5), version="fast", show=False)
    assert next(c for c in report.checks if c.name == NAMES[10]).verdict == "pass"


def test_a_curve_that_disagrees(sound: Report) -> None:
    def curve(*shares: float):
        return [(0.05 * (i + 1), share, "apgd") for i, share in enumerate(shares)]

    report = dataclasses.replace(sound, robust=torch.arange(100) < 40, y=torch.zeros(100), clean=torch.arange(100) < 90)
    assert report.robust_accuracy == 0.4
    assert checks.curve_agrees(report, curve(0.42, 0.2, 0.0)).verdict == "pass"
    assert "rises" in checks.curve_agrees(report, curve(0.42, 0.5, 0.0)).detail
    assert "nothing can" in checks.curve_agrees(report, curve(0.42, 0.3, 0.2)).detail
    assert "this one more" in checks.curve_agrees(report, curve(0.3, 0.2, 0.0)).detail


def test_too_few_images(sound: Report) -> None:
    assert checks.enough_images(sound).verdict == "warn"
    many = dataclasses.replace(sound, robust=torch.arange(2000) < 1000, y=torch.zeros(2000))
    assert checks.enough_images(many).verdict == "pass"
    low, high = many.ci95
    assert (low, high) == pytest.approx((0.4781, 0.5219), abs=1e-4)


def test_robust_but_wrong_when_clean(sound: Report) -> None:
    assert checks.robust_means_clean(sound.clean, sound.robust).verdict == "pass"
    assert checks.robust_means_clean(torch.zeros(12, dtype=torch.bool), torch.ones(12, dtype=torch.bool)).verdict == (
        "fail"
    )


def test_low_precision() -> None:
    x = images(2)
    with full_precision():
        assert checks.full_precision(x.half(), "float32").verdict == "fail"
        assert checks.full_precision(x, "float32").verdict == "pass"
        assert checks.full_precision(x, "mixed").verdict == "warn"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert checks.full_precision(x, "float32").verdict == "fail"
        assert checks.full_precision(x, "mixed").verdict == "fail"
    assert torch.backends.cuda.matmul.fp32_precision == "none"  # as it was


@pytest.mark.parametrize("kind", ["autocast", "weights", "logits", "its own autocast", "half"])
def test_a_network_that_computes_in_bfloat16(kind: str) -> None:
    net, x = smooth(4), images(8)
    y = net(x).argmax(1)
    low = smooth(4).bfloat16()
    model = {
        "autocast": net,
        "weights": low,
        "logits": lambda p: low(p.bfloat16()),
        "its own autocast": lambda p: torch.autocast("cpu", torch.bfloat16)(net)(p).float(),
        "half": smooth(4).half().eval(),
    }[kind]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")
    with autocast, pytest.raises(CheckFailed, match="check 16, the network computes in float32"):
        autoattack(_Cast(model).eval() if kind == "weights" else model, x, y, THREAT, version="fast", show=False)


class _Cast(torch.nn.Module):
    """bfloat16 inside, float32 outside."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.bfloat16()).float()


@pytest.mark.parametrize("setting", ["new", "old"])
def test_the_callers_precision_is_put_back(setting: str) -> None:
    """torch has two ways to say it, and refuses to read the one after the other was used."""
    net, x = smooth(4), images(8)
    before = torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()
    try:
        if setting == "new":
            torch.backends.cudnn.conv.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("medium")
        kept = torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
        report = autoattack(net, x, net(x).argmax(1), THREAT, version="fast", show=False)
        assert not any("16" in str(c.number) and c.verdict == "fail" for c in report.checks)
        assert kept == (torch.backends.mkldnn.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
        if setting == "old":
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before[0]
        torch.set_float32_matmul_precision(before[1])


def test_the_attack_inside_training_is_the_same_file() -> None:
    """pgd.py imports nothing of the evaluation: training does not go stale with it."""
    source = Path(pgd.__file__).read_text()
    assert [line for line in source.splitlines() if line.startswith("from autolora")] == [
        "from autolora.threat import Threat"
    ]


def row_of(report: Report, number: int) -> Check:
    return next(c for c in one_each(report.checks) if c.number == number)


@pytest.mark.parametrize(
    ("form", "says"), [("float", ""), ("half", "float16"), ("QDQ", "8 bits"), ("dynamic", "8 bits")]
)
def test_what_a_file_computes_in(tmp_path: Path, form: str, says: str) -> None:
    """Also where its scores alone are asked for, so that there is no copy."""
    x, y = colours.images(6)
    path = colours.write(tmp_path / "m.onnx", form if form == "half" else "float")
    if form in ("QDQ", "dynamic"):
        path = quantised_file(path, x.astype(np.float32) / 255, form)
    for gradients in (True, False):
        net = FileNetwork(onnx.load(path), gradients=gradients)
        row = row_of(black_box(net, torch.from_numpy(x), torch.from_numpy(y), THREAT, queries=3, show=False), 16)
        assert row.verdict == ("warn" if says else "pass")
        assert f"the file computes in {says}:" in row.detail or not says


def test_a_module_in_bfloat16_that_is_asked_for_scores() -> None:
    net, x = smooth(4).bfloat16(), images(6)
    report = black_box(_Cast(net).eval(), x, smooth(4)(x).argmax(1), THREAT, queries=3, show=False)
    assert row_of(report, 16).verdict == "warn"
    assert "bfloat16" in row_of(report, 16).detail


def test_no_attack_that_was_not_made_works() -> None:
    """That the labels belong to the images is another part of the same number."""
    net, x = smooth(4), images(6)
    row = row_of(black_box(net, x, net(x).argmax(1), THREAT, queries=3, show=False), 10)
    assert row.verdict == "not run"
    assert row.detail.startswith("scores alone: no attack that follows gradients was made; labels are those")


def test_the_record_has_one_row_for_each_check(sound: Report) -> None:
    """With the worst verdict of its parts, and what each of them says."""
    rows = sound.as_record()["checks"]
    assert [row["number"] for row in rows] == list(NAMES)
    assert [row["name"] for row in rows] == list(NAMES.values())
    bad = dataclasses.replace(
        sound, checks=[*sound.checks, checks.labels_belong(dataclasses.replace(sound, clean=~sound.clean))]
    )
    (row,) = [row for row in bad.as_record()["checks"] if row["number"] == 10]
    assert row["verdict"] == "fail"
    assert "labels are those of the images: 0 of 12" in row["detail"]
    assert len(one_each(bad.checks)) == 16


def test_record_is_whole(sound: Report) -> None:
    record = sound.as_record()
    for key in ("threat", "version", "deviation", "clean_accuracy", "robust_accuracy", "ci95", "attacks", "checks"):
        assert key in record
    assert set(record["attacks"][0]) == {"name", "robust_accuracy"}
    assert not any("seconds" in str(part) for part in record["attacks"])
    assert np.isclose(record["threat"]["eps_255"], 12.75)


@pytest.mark.parametrize(("n", "verdict"), [(380, "warn"), (381, "pass")])
def test_enough_images_for_five_points_to_either_side(sound, n, verdict):
    half = dataclasses.replace(sound, robust=torch.arange(n) < n / 2, y=torch.zeros(n))
    assert checks.enough_images(half).verdict == verdict


@pytest.mark.parametrize(("odd", "broken", "beaten"), [(2, "pass", "pass"), (3, "fail", "warn")])
def test_two_images_of_a_thousand_are_no_fault(sound, odd, broken, beaten):
    """That are right when looked at again; and that the black box alone breaks."""
    few = torch.arange(1000) < odd
    attacks = [AttackResult(name, 0.5, count, 0, 0, 0) for name, count in (("apgd-ce", 500), ("square", odd))]
    report = dataclasses.replace(
        sound, y=torch.zeros(1000, dtype=torch.long), clean=torch.ones(1000, dtype=torch.bool),
        robust=torch.zeros(1000, dtype=torch.bool), fooled=torch.where(few, 0, 1), attacks=attacks,
    )  # fmt: skip
    assert checks.truly_broken(report).verdict == broken
    assert checks.black_box_adds_nothing(report).verdict == beaten


@pytest.mark.parametrize(("masked", "verdict"), [(1, "pass"), (2, "fail")])
def test_one_image_of_a_hundred_may_have_no_gradient(masked, verdict):
    net, x = smooth(4), images(100)
    x[:masked, 0, 0, 0], x[masked:, 0, 0, 0] = 1.0, 0.5

    def some_masked(p):
        return torch.where(p[:, 0, 0, 0, None] > 0.9, net(p).detach(), net(p))

    check = checks.gradients_reach(Network(some_masked, 100), x, net(x).argmax(1), THREAT, 0)
    assert check.verdict == verdict


def test_dark_images_are_taken_for_ones_divided_twice():
    assert "divided by 255 twice" in checks.pixels(torch.full((2, 3, 6, 6), 25 / 255)).detail
    assert checks.pixels(torch.full((2, 3, 6, 6), 26 / 255)).verdict == "pass"


@pytest.mark.parametrize(("right", "verdict"), [(12, "pass"), (3, "warn")])
def test_labels_are_doubted_only_where_a_constant_answer_is_surely_better(sound, right, verdict):
    """The largest class has 10 of 40."""
    y = torch.arange(40) % 4
    report = dataclasses.replace(sound, y=y, clean=torch.arange(40) < right, predicted=y.roll(1))
    assert checks.labels_belong(report).verdict == verdict


def test_a_verdict_says_which_attack_is_not_the_standard_one(sound):
    said = {version: dataclasses.replace(sound, version=version).verdict for version in ("standard", "strong", "plus")}
    assert " images stand AutoAttack at linf:" in said["standard"]
    assert " images stand AutoAttack (standard, and then what strong adds) at linf:" in said["strong"]
    assert " images stand plus (not standard AutoAttack) at linf:" in said["plus"]
