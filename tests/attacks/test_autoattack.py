"""The whole evaluation: exact on linear networks, the same however it is run, and without side effects."""

import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from autolora import Threat, autoattack
from autolora.attacks import checks, confirmation
from autolora.attacks.apgd import APGD
from autolora.attacks.autoattack import black_box
from autolora.attacks.confirmation import Confirmation
from autolora.attacks.engine.fast_copies import quick_copies
from autolora.attacks.engine.journal import Journal
from autolora.attacks.engine.network import Network
from autolora.attacks.engine.prepare import full_precision, switches
from autolora.attacks.engine.slots import Slots
from autolora.attacks.square import SquareLinf
from autolora.attacks.verdicts import Check, CheckFailed
from autolora.attacks.versions import Budget, plan_of
from autolora.data.images import TestImages
from autolora.export.conversion import ExportError, traced
from tests.attacks.nets import Linear, images, smooth, stands

EPS = {"linf": 0.03, "l2": 0.25, "l1": 1.0}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_exact_on_a_linear_network(norm: str, classes: int) -> None:
    net, x = Linear(classes), images(24)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % classes  # one image is wrong from the start
    report = autoattack(net, x, y, Threat(norm, EPS[norm]), version="fast", batch_size=24, show=False)
    exact = stands(net, x, y, norm, EPS[norm])
    near = stands(net, x, y, norm, EPS[norm] * 0.99) != stands(net, x, y, norm, EPS[norm] * 1.01)
    assert not (report.found & exact & ~near).any()
    assert ((report.robust != exact) & ~near).sum() <= (norm == "l1")
    assert 0 < exact.sum() < 24
    assert not report.clean[0]
    assert torch.equal(report.adversarial[~report.found], x[~report.found])
    assert (net(report.adversarial).argmax(1) != y)[report.found].all()


def test_few_classes_are_recorded() -> None:
    names = {c: [s.name for s in plan_of("standard", "linf", c)[0]] for c in (2, 3, 4, 10, 11)}
    assert names[2] == names[3] == ["apgd-ce", "fab-t", "square"]
    assert names[4] == names[11] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert plan_of("standard", "linf", 10)[1] is None
    assert "3 target classes" in (plan_of("standard", "linf", 4)[1] or "")
    assert [s.attempts for s in plan_of("standard", "linf", 11)[0]] == [1, 9, 9, 1]
    assert [s.attempts for s in plan_of("standard", "l1", 11)[0]] == [5, 5, 9, 1]
    assert [s.name for s in plan_of("rand", "l2", 2)[0]] == ["apgd-ce"]
    assert [s.attempts for s in plan_of("plus", "linf", 11)[0]] == [5, 5, 5, 1, 9, 9]


@pytest.mark.slow
def test_flags_do_not_depend_on_grouping_or_order() -> None:
    net, x = smooth(4), images(22)
    y, threat = net(x).argmax(1), Threat("linf", 0.05)
    whole = autoattack(net, x, y, threat, version="fast", batch_size=8, show=False)
    order = torch.randperm(22, generator=torch.Generator().manual_seed(0))
    mixed = autoattack(net, x[order], y[order], threat, version="fast", batch_size=8, show=False)
    parts = [autoattack(net, x[p], y[p], threat, version="fast", batch_size=8, show=False) for p in order.split(9)]
    assert torch.equal(mixed.robust, whole.robust[order])
    assert torch.equal(mixed.adversarial, whole.adversarial[order])
    assert torch.equal(torch.cat([p.robust for p in parts]), whole.robust[order])
    assert torch.equal(torch.cat([p.adversarial for p in parts]), whole.adversarial[order])
    assert 0 < whole.robust.sum() < 22


@pytest.mark.slow
def test_the_whole_standard_version_does_not_depend_on_grouping(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAB and Square too, which `fast` leaves out; with few queries."""
    budget = Budget(queries=150)
    net, x = smooth(4), images(11)
    y, threat = net(x).argmax(1), Threat("linf", 0.05)
    monkeypatch.setattr(APGD, "move", lambda self, s, origin, gradient, first: origin)  # leaves something for the rest
    monkeypatch.setattr(checks, "attack_works", lambda *_, **__: Check(10, "attack works", "pass", ""))

    def attacked(part: torch.Tensor):
        return autoattack(net, x[part], y[part], threat, batch_size=4, budget=budget, show=False)

    whole, parts = attacked(torch.arange(11)), [attacked(part) for part in torch.arange(11).flip(0).split(3)]
    assert torch.equal(torch.cat([p.robust for p in parts]).flip(0), whole.robust)
    assert torch.equal(torch.cat([p.adversarial for p in parts]).flip(0), whole.adversarial)
    assert sum(a.broken for a in whole.attacks[2:]) > 2


@pytest.mark.parametrize("version", ["standard", "plus", "strong"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_whole_versions_are_exact_on_a_linear_network(version: str, classes: int) -> None:
    net, x = Linear(classes), images(8)
    y = net(x).argmax(1)
    exact = stands(net, x, y, "linf", 0.03)
    near = stands(net, x, y, "linf", 0.0297) != stands(net, x, y, "linf", 0.0303)
    report = autoattack(net, x, y, Threat("linf", 0.03), version=version, budget=Budget(queries=20), show=False)
    assert "20 queries instead of 5000" in (report.deviation or "")
    assert [a.name for a in report.attacks] == [s.name for s in plan_of(version, "linf", classes)[0]]
    assert torch.equal(report.robust[~near], exact[~near])


@pytest.mark.slow
def test_standard_in_mixed_precision_is_that_of_float32() -> None:
    net, x = smooth(4), images(12)
    y, threat = net(x).argmax(1), Threat("l2", 0.4)
    full, mixed = (
        autoattack(net, x, y, threat, precision=p, budget=Budget(queries=60), batch_size=6, show=False)
        for p in ("float32", "mixed")
    )
    assert (full.robust != mixed.robust).sum() <= 1
    assert 0 < mixed.robust.sum() < 12


def test_another_seed_draws_other_starts() -> None:
    net, x = smooth(6), images(20)
    y = net(x).argmax(1)
    one, other = (autoattack(net, x, y, Threat("linf", 0.08), version="fast", seed=s, show=False) for s in (0, 1))
    both = one.found & other.found
    assert (one.adversarial[both] != other.adversarial[both]).flatten(1).any(1).float().mean() > 0.2


def test_caller_is_left_alone() -> None:
    net, x = smooth(4).requires_grad_(True), images(6)
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pixels = x.clone()
    autoattack(net, x, net(x).argmax(1), Threat("l2", 0.3), version="fast", show=False)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand() == expected[1]
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(x, pixels)


def test_any_callable_and_bytes() -> None:
    net, x = smooth(4), images(6)
    y = net(x).argmax(1)
    one = autoattack(lambda p: net(p), x, y, Threat("linf", 0.05), version="fast", show=False)
    other = autoattack(net, (x * 255).round().byte(), y, Threat("linf", 0.05), version="fast", show=False)
    assert torch.equal(one.robust, other.robust)


def test_broken_images_cost_little() -> None:
    """Nothing is spent on an image after the step that breaks it; the original spends 101 gradients."""
    net, x = Linear(4, scale=4.0), images(200)
    y = net(x).argmax(1)
    report = autoattack(net, x, y, Threat("linf", 0.3), version="standard", batch_size=8, show=False)
    assert report.robust_accuracy == 0
    assert report.attacks[0].forwards < 10 * 200
    assert [a.forwards for a in report.attacks[1:]] == [0, 0, 0]


@pytest.mark.slow
def test_plus_and_rand_run_whole() -> None:
    net, x = smooth(5), images(6)
    y = net(x).argmax(1)
    how = {"budget": Budget(queries=300, samples=4), "batch_size": 6, "show": False}
    plain, rand = (autoattack(net, x, y, Threat("l2", 0.4), version=v, **how) for v in ("plus", "rand"))
    assert [a.name for a in plain.attacks] == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [a.name for a in rand.attacks] == ["apgd-ce", "apgd-dlr"]
    assert not (rand.robust & ~plain.robust).any()


@pytest.mark.slow
def test_rand_averages_over_a_random_network() -> None:
    net, x = smooth(4), images(8)
    draw = torch.Generator().manual_seed(0)

    def noisy(p: torch.Tensor) -> torch.Tensor:
        return net(p + 0.01 * torch.randn(p.shape, generator=draw))

    report = autoattack(noisy, x, net(x).argmax(1), Threat("linf", 0.2), version="rand", batch_size=8, show=False)
    assert report.robust_accuracy < 0.5


def normed() -> torch.nn.Module:
    """With a batch norm that has seen images."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(288, 5),
    )  # fmt: skip
    body(images(64))
    return body.eval()


def test_mixed_precision_is_verified() -> None:
    """The folded copy's successes are the network's own, and the flags those of full precision."""
    body, x = normed(), images(24)
    y = body(x).argmax(1)
    threat = Threat("linf", 0.02)
    full = autoattack(body, x, y, threat, version="fast", show=False)
    mixed = autoattack(body, x, y, threat, version="fast", precision="mixed", show=False)
    assert (full.robust != mixed.robust).sum() <= 1
    assert (body(mixed.adversarial).argmax(1) != y)[mixed.found].all()
    assert mixed.precision == "mixed"
    assert any(c.number == 16 and c.verdict == "warn" for c in mixed.checks)


@pytest.mark.slow
def test_scores_come_from_onnxruntime_in_mixed_precision() -> None:
    """What stands meets Square there: the record says so, an answer depends on nothing but its image, and successes
    are the network's own."""
    budget = Budget(queries=40)
    net, x = normed(), images(20)
    y = net(x).argmax(1)
    copies = quick_copies(net, x[:2])
    network, order = Network(copies.full, 8), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    logits = network.logits(x)
    assert copies.full.version == onnxruntime.__version__
    assert torch.equal(network.logits(x[order]), logits[order])
    assert (logits - net(x)).abs().max() <= 1e-4 * logits.abs().max()
    report = autoattack(net, x, y, Threat("linf", 0.01), precision="mixed", budget=budget, batch_size=8, show=False)
    assert report.versions["onnxruntime"] == onnxruntime.__version__
    assert (net(report.adversarial).argmax(1) != y)[report.found].all()
    full = autoattack(net, x, y, Threat("linf", 0.01), budget=budget, batch_size=8, show=False)
    assert (full.robust != report.robust).sum() <= 1
    assert "onnxruntime" not in full.versions


@pytest.mark.slow
def test_a_second_life_names_what_the_first_one_used(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """And one with another onnxruntime does not go on from it."""
    net, x = normed(), images(8)

    def attacked():
        return autoattack(
            net,
            x,
            net(x).argmax(1),
            Threat("linf", 0.01),
            precision="mixed",
            budget=Budget(queries=20),
            progress=tmp_path,
            batch_size=8,
            show=False,
        )

    assert attacked().as_record() == attacked().as_record()
    monkeypatch.setattr("autolora.attacks.engine.onnx_network.onnxruntime.__version__", "0.0")
    with pytest.raises(ValueError, match="differs in runtime"):
        attacked()


@pytest.mark.slow
def test_the_newer_exporter_converts_what_the_older_one_does_not_take() -> None:
    """Attention that torch has in one operation is unknown to the older one."""

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.fc = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.nn.Linear(8, 4)

        def forward(self, p: torch.Tensor) -> torch.Tensor:
            t = p.flatten(1)[:, :96].unflatten(1, (12, 8))
            return self.fc(self.attention(t, t, t, need_weights=False)[0].mean(1))

    net, x = Attention().eval(), images(4)
    copies = quick_copies(net, x[:2])
    with pytest.raises(ExportError):
        traced(net, (3, 6, 6))
    assert (copies.full(x) - net(x)).abs().max() <= 1e-4
    assert copies.full.version == onnxruntime.__version__


@pytest.mark.slow
def test_a_network_without_onnx_form_answers_itself() -> None:
    class Complex(torch.nn.Module):
        def forward(self, p: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(p[:, 0] + 6 * torch.eye(6)).real.sort(dim=1).values[:, :4]

    net, x = Complex().eval(), images(4)
    copies = quick_copies(net, x[:2])
    assert torch.equal(copies.full(x), net(x))
    assert copies.full.version == ""


def set_nothing() -> None:
    pass


def set_globally() -> None:
    torch.backends.fp32_precision = "tf32"


def set_for_cudnn() -> None:
    torch.backends.cudnn.fp32_precision = "tf32"


def set_for_convolutions() -> None:
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.mark.parametrize("act", [set_nothing, set_globally, set_for_cudnn, set_for_convolutions])
def test_torchs_older_switch_works_within_an_attack(act) -> None:
    """It fails where the newer ones say something else, and torch's exporter uses it; float32 stays float32."""
    before = [(switch, switch.fp32_precision) for switch in switches()]
    try:
        act()
        set_by_the_caller = [switch.fp32_precision for switch in switches()]
        with full_precision():
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                assert not torch.backends.cudnn.allow_tf32
            assert not {switch.fp32_precision for switch in switches()} & {"tf32", "bf16"}
        assert [switch.fp32_precision for switch in switches()] == set_by_the_caller
    finally:
        torch.backends.cudnn.allow_tf32 = True
        for switch, value in before:
            switch.fp32_precision = value


def test_doubtful_successes_are_attacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that sees successes everywhere must not break a single image that the network keeps."""
    net, x = Linear(4), images(16)
    y = net(x).argmax(1)
    monkeypatch.setattr(
        "autolora.attacks.evaluation.quick_copies", lambda model, example: [lambda p: -model(p)] * 2, raising=True
    )
    threat = Threat("linf", 0.02)
    plain = autoattack(net, x, y, threat, version="fast", show=False)
    fooled = autoattack(net, x, y, threat, version="fast", precision="mixed", show=False)
    assert torch.equal(plain.robust, fooled.robust)


@pytest.mark.slow
def test_a_fooled_copy_makes_no_difference_to_grouping(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is often wrong about successes: which ranks had been tried when that was seen must not matter."""
    net, x = smooth(4), images(16)
    y, threat = net(x).argmax(1), Threat("linf", 0.05)
    other = smooth(4, seed=5)
    copies = [lambda p: net(p) + 0.3 * other(p)] * 2
    monkeypatch.setattr("autolora.attacks.evaluation.quick_copies", lambda model, example: copies)
    fine = Check(10, "attack works", "pass", "")  # it would not be: such a copy hides what the network falls to
    monkeypatch.setattr(checks, "attack_works", lambda *_, **__: fine)

    def attacked(part: torch.Tensor, batch: int = 5):
        return autoattack(
            net, x[part], y[part], threat, version="fast", batch_size=batch, precision="mixed", show=False
        )

    whole, parts = attacked(torch.arange(16)), [attacked(part) for part in torch.arange(16).split(1)]
    assert torch.equal(torch.cat([p.robust for p in parts]), whole.robust)
    assert torch.equal(torch.cat([p.adversarial for p in parts]), whole.adversarial)
    assert 0 < whole.robust.sum() < 16


def test_a_copy_that_cannot_be_made_is_named() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(108, 4)))
    x = images(4)
    with pytest.raises(ValueError, match="precision is 'mixed': the network cannot be copied and folded"):
        autoattack(
            torch.jit.trace(net.eval(), x), x, net(x).argmax(1), Threat("linf", 0.1), precision="mixed", show=False
        )


@pytest.mark.parametrize("kind", [partial(APGD, steps=30), partial(SquareLinf, queries=60)])
def test_looking_seldom_changes_nothing(kind) -> None:
    """On a GPU finished rows are looked for after several steps only."""
    net, x = smooth(4), images(14)
    targets = net(x).argsort(1, descending=True)[:, 1:]
    known = TestImages.of(x, net(x).argmax(1))
    found: dict[int, list] = {}
    for every in (1, 7):
        slots = Slots(kind(Network(net, 5), Threat("linf", 0.06)), known, targets, name="attack", seed=0, batch=5)
        slots.every, done = every, {}
        slots.run([(image, attempt) for attempt in range(2) for image in range(14)], done.__setitem__)
        lowest = {job[0]: job for job in sorted(done, reverse=True) if done[job] is not None}
        found[every] = [(job, done[job]) for _, job in sorted(lowest.items())]
    assert 0 < len(found[1]) < 14
    assert [job for job, _ in found[1]] == [job for job, _ in found[7]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found[1], found[7]))


def test_progress_is_shown_where_somebody_looks(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    x, net = images(6), smooth(4)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report = autoattack(net, x, net(x).argmax(1), Threat("linf", 0.05), version="fast", batch_size=3)
    last = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line.startswith("apgd-ce")][-1]
    stand = round(6 * report.attacks[0].robust_accuracy)
    assert last.startswith(f"apgd-ce: {stand} of 6 stand 100%")
    assert last.rstrip().endswith("00:00 left")
    autoattack(net, x, net(x).argmax(1), Threat("linf", 0.05), version="fast", batch_size=3, show=False)
    assert not capsys.readouterr().err


def test_progress_of_one_of_several_processes_says_so(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process counts the images of its own share: "46 of 46" of a hundred."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(confirmation.distributed, "process_count", lambda: 2)
    shown = SimpleNamespace(settings=SimpleNamespace(show=True))
    with confirmation._bar(shown, "apgd-ce", 4, lambda: (2, 3)) as tick:
        tick(4, 0)
    assert "apgd-ce: 2 of 3 stand (process 1 of 2)" in capsys.readouterr().err


def test_images_that_lie_otherwise_in_memory() -> None:
    net, x = smooth(4), images(5)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    reports = [
        black_box(net, some, net(x).argmax(1), Threat("linf", 0.1), queries=30, show=False) for some in (x, turned)
    ]
    assert torch.equal(reports[0].adversarial, reports[1].adversarial)


def test_black_box_looks_at_the_network_first() -> None:
    x = images(6)
    with pytest.raises(CheckFailed, match="check 6"):
        black_box(lambda p: smooth(4)(p).softmax(1), x, torch.zeros(6), Threat("linf", 0.1), queries=30, show=False)


def test_black_box_through_onnxruntime(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x = Linear(4), images(10)
    program = torch.onnx.export(
        net, (x[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    program.save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    y, threat = net(x).argmax(1), Threat("linf", 0.05)
    torch_side = black_box(net, x, y, threat, queries=300, show=False)
    onnx_side = black_box(session, x, y, threat, queries=300, show=False)
    assert (torch_side.robust != onnx_side.robust).sum() <= 1
    assert not (onnx_side.found & stands(net, x, y, "linf", 0.05)).any()
    assert onnx_side.found.any()
    assert "Square alone" in (onnx_side.deviation or "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "strongest"}, "version is 'strongest'"),
        ({"precision": "half"}, "precision is 'half'"),
        ({"precision": "fast"}, "it is now called mixed"),
        ({"ids": ["a"] * 4}, "different ids"),
        ({"y": torch.zeros(3)}, "4 images and 3 labels"),
        ({"y": torch.tensor([0.0, 1.0, 0.5, 1.0])}, "expected whole class numbers"),
        ({"y": torch.tensor([0.0, 1.0, torch.nan, 1.0])}, "expected whole class numbers"),
    ],
)
def test_impossible_arguments(change: dict, said: str) -> None:
    arguments = {"model": smooth(4), "x": images(4), "y": torch.zeros(4), "threat": Threat("linf", 0.1)} | change
    with pytest.raises(ValueError, match=said):
        autoattack(**arguments)


@pytest.mark.slow
def test_known_values(shared) -> None:
    """What the original finds on the 500 listed images: the white-box attacks must reach it, within 0.5 points."""
    from benchmarks.zoo import cifar500, load_zoo

    torch.set_num_threads(1)
    x, y = cifar500(shared)
    report = autoattack(
        load_zoo(shared, "resnet2b"), x, y, Threat("linf", "2/255"), version="fast", batch_size=64, show=False
    )
    assert 100 * report.clean_accuracy == pytest.approx(72.4)
    assert 100 * report.robust_accuracy == pytest.approx(58.4, abs=0.5)


def test_of_attempts_that_succeed_the_first_one_is_shown(monkeypatch) -> None:
    """Two run at once where slots are free, and the later one may be through first."""
    net, x = smooth(4), images(12)
    y, threat = net(x).argmax(1), Threat("linf", 0.05)
    plain = autoattack(net, x, y, threat, version="fast", show=False)

    def another_one_too(e, step, some):
        found = confirmation.attack(e, step, some)
        broken = [job for job, point in found.items() if point is not None]
        return found | {(image, attempt + 1): e.images.pixels()[image] for image, attempt in broken}

    monkeypatch.setattr("autolora.attacks.autoattack.attack", another_one_too)
    assert torch.equal(autoattack(net, x, y, threat, version="fast", show=False).adversarial, plain.adversarial)
    assert plain.found.any()


def test_an_image_is_doubtful_from_its_first_success_that_was_none() -> None:
    """Attempts 1 and 3 fooled the copy alone, and 2 the network: which came first must not matter."""
    net, x = smooth(4), images(1)
    right = net(x).argmax(1)
    e = SimpleNamespace(
        network=Network(net, 1), device=torch.device("cpu"), images=TestImages.of(x, right), journal=Journal(None)
    )
    for order in ((1, 3), (3, 1)):
        known = Confirmation(e, "apgd-t", {(0, 0): None, (0, 2): x[0]})
        for attempt in order:
            known.hear((0, attempt), x[0])
        assert known.doubtful() == [0]
