"""Distillation from one robust teacher (RSLAD), and from that and a natural one (MTARD)."""

from functools import partial

import pytest
import torch

from autolora.backbones.classifier import save_classifier
from autolora.backbones.loading import load_backbone
from autolora.common.files import weights_sha256
from autolora.training import loop, objectives
from autolora.training.controllers import Scalars
from autolora.training.learner import Learner
from autolora.training.loop import finetune, one_step
from autolora.training.resume import layers
from autolora.training.settings import Settings
from autolora.training.teachers import Balance, Teachers
from tests.method.small import QUICK, THREAT, images, network, transformer, wide_enough, without_batch_norm
from tests.oracle import steps as oracle

WEIGHTS = Scalars(0.5, 3.0)
TWO = {"teacher": "first_pass", "natural_teacher": "twin"}


# --- the losses ------------------------------------------------------------------------------------------------------


class Given:
    """A network and teachers whose logits are given."""

    smoothing = 0.0

    def __init__(self, z, z_adv, share=0.3):
        draw = torch.Generator().manual_seed(1)
        self.outputs, self.share = {"x": z, "x~": z_adv}, share
        self.robust = {x: torch.randn(5, 4, dtype=torch.float64, generator=draw) for x in ("x", "x~")}
        self.other = torch.randn(5, 4, dtype=torch.float64, generator=draw)

    def plain(self, x):
        return self.outputs[x]

    def teacher(self, x):
        return self.robust[x]

    def natural_teacher(self, x):
        assert x == "x"  # it knows nothing of attacks
        return self.other

    def balance_of_teachers(self):
        return self.share

    def mean(self, values):
        return values.mean()


@pytest.fixture
def given():
    draw = torch.Generator().manual_seed(0)
    z, z_adv = (torch.randn(5, 4, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(2))
    return Given(z, z_adv), z, z_adv, torch.tensor([0, 1, 2, 3, 0])


def test_rslad(given):
    net, z, z_adv, y = given
    taught = net.robust["x"]
    found = objectives.distill(net, "x", "x~", y, WEIGHTS)
    assert torch.allclose(found.total, 5 / 6 * oracle.kl(taught, z_adv) + 1 / 6 * oracle.kl(taught, z))
    assert torch.allclose(found.natural, oracle.kl(taught, z))
    assert torch.allclose(found.accuracy, (z.argmax(1) == y).float().mean())  # of the labels, not of the teacher


def test_a_network_that_answers_as_its_teacher_learns_nothing(given):
    net, z, _, y = given
    net.robust["x"] = z.detach()
    (slope,) = torch.autograd.grad(objectives.distill(net, "x", "x~", y, WEIGHTS).natural, z)
    assert slope.abs().max() < 1e-15


def test_mtard(given):
    net, z, z_adv, y = given
    found = objectives.distill_from_two(net, "x", "x~", y, WEIGHTS)
    assert torch.allclose(found.total, 0.7 * oracle.kl(net.robust["x~"], z_adv) + 0.3 * oracle.kl(net.other, z))


def test_the_released_rates_are_those_of_the_divergence_itself():
    """[code] the loss is a mean over ten classes too: rate 0.1, decay 2e-4."""
    torch.manual_seed(0)
    x, taught = torch.rand(6, 5, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    start, ends = torch.randn(10, 5, dtype=torch.float64), []
    method = objectives.METHODS["distill"]
    for rate, decay, scale in ((method.rate, method.decay, 1.0), (0.1, 2e-4, 0.1)):
        w = start.clone().requires_grad_(True)
        sgd = torch.optim.SGD([w], rate, momentum=0.9, weight_decay=decay)
        for _ in range(5):
            sgd.zero_grad()
            (scale * oracle.kl(taught, x @ w.T)).backward()
            sgd.step()
        ends.append(w.detach())
    assert not torch.allclose(ends[0], start, atol=1e-3)
    assert torch.allclose(*ends, rtol=1e-6)


# --- the balance -----------------------------------------------------------------------------------------------------


def test_the_balance_follows_what_is_left_of_each_divergence():
    balance, expected = Balance(), 0.5
    for adversarial, natural in ((2.0, 0.5), (1.0, 0.5), (0.5, 0.4)):
        balance.observe(adversarial, natural, 0.025)
        left, left_natural = adversarial / 2.0, natural / 0.5
        expected -= 0.025 * (expected - left_natural / (left + left_natural))
        assert balance.natural == pytest.approx(expected)
    assert expected > 0.5  # less was learnt from the natural teacher
    again = Balance(**balance.state())
    assert again == balance


def test_the_first_batch_leaves_halves_and_nothing_left_is_no_division_by_nothing():
    balance = Balance()
    balance.observe(3.0, 0.01, 0.025)
    assert balance.natural == 0.5
    balance.observe(0.0, 0.0, 0.025)
    assert balance.natural == 0.5
    still = Balance()
    still.observe(0.0, 0.0, 0.025)
    assert still.natural == 0.5


# --- whole steps -----------------------------------------------------------------------------------------------------


def moved(seed):
    """A small network with batch norms that have seen something, and its tensors for the oracle."""
    torch.manual_seed(seed)
    model = oracle.Small().double()
    for _ in range(3):
        model(torch.rand(8, 3, 8, 8, dtype=torch.float64))
    w = {k: v.detach().clone().requires_grad_(True) for k, v in model.named_parameters()}
    return model, w, {k: v.clone() for k, v in model.named_buffers() if "batches" not in k}


def logits(model, x):
    w, stats = dict(model.named_parameters()), dict(model.named_buffers())
    return oracle.forward(w, stats, x, train=False).detach()


def start(two=False, rate=0.01):
    (model, w, stats), teachers = moved(0), [moved(seed)[0].eval().requires_grad_(False) for seed in (1, 2)]
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    more = TWO if two else {"teacher": "first_pass"}
    settings = Settings(THREAT, "distill", "best", batch_size=6, precision="float32", rate=rate, attack="pgd", **more)
    taught = Teachers(teachers[0], teachers[1] if two else None)
    learner = Learner(model, (x, y), (x, y), settings, torch.device("cpu"), teachers=taught)
    learner.model.train()
    return learner, w, stats, teachers, x, y


def noise(x, seed):
    return (torch.rand(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * THREAT.eps


def farthest(w, stats, x, taught, start):
    """Ten steps up KL(T(x) || h(x~)), written out."""
    fixed, adv = {k: v.detach() for k, v in w.items()}, (x + start).clamp(0, 1)
    for _ in range(10):
        adv.requires_grad_(True)
        (slope,) = torch.autograd.grad(oracle.kl(taught, oracle.forward(fixed, stats, adv, train=False)), adv)
        adv = (adv.detach() + THREAT.eps / 4 * slope.sign()).clamp(x - THREAT.eps, x + THREAT.eps).clamp(0, 1)
    return adv


def step(w, loss):
    oracle.sgd(w, dict(zip(w, torch.autograd.grad(loss, list(w.values())))), {}, rate=0.01, decay=2e-3)


def same(learner, w, stats):
    found = dict(learner.model.named_parameters()) | dict(learner.model.named_buffers())
    for name, value in (w | stats).items():
        assert torch.allclose(found[name], value, atol=1e-11), name


def test_a_step_of_rslad_from_the_attack_on():
    learner, w, stats, (teacher, _), x, y = start()
    before = weights_sha256(teacher.state_dict())
    learner.begin(3, 6)
    attacked = learner.attack(x, y)
    taught = logits(teacher, x)
    assert torch.allclose(attacked, farthest(w, stats, x, taught, noise(x, 3)), atol=1e-10)
    one_step(learner, x, attacked, y)
    z, z_adv = oracle.forward(w, stats, x, train=True), oracle.forward(w, stats, attacked, train=True)
    step(w, 5 / 6 * oracle.kl(taught, z_adv) + oracle.kl(taught, z) / 6)
    same(learner, w, stats)
    assert weights_sha256(teacher.state_dict()) == before


def test_the_decay_of_the_release_goes_with_its_rate():
    decays = [start(**rate)[0].optimiser.defaults["weight_decay"] for rate in ({"rate": 0.01}, {"rate": None})]
    assert decays == [2e-3, 1e-4]


def test_steps_of_mtard_and_its_balance():
    learner, w, stats, (robust, natural), x, y = start(two=True)
    share, first = 0.5, None
    for i in range(2):
        learner.begin(i, 6)
        attacked = learner.attack(x, y)
        assert torch.allclose(attacked, oracle.pgd(w, stats, x, y, noise(x, i), THREAT.eps), atol=1e-10)  # the labels
        learner.optimiser.state.clear()  # no momentum: the oracle's step has none
        one_step(learner, x, attacked, y)
        z, z_adv = oracle.forward(w, stats, x, train=True), oracle.forward(w, stats, attacked, train=True)
        of_natural, of_robust = oracle.kl(logits(natural, x), z), oracle.kl(logits(robust, attacked), z_adv)
        step(w, (1 - share) * of_robust + share * of_natural)
        same(learner, w, stats)
        first = first or (of_robust.item(), of_natural.item())
        left, left_natural = of_robust.item() / first[0], of_natural.item() / first[1]
        share -= 0.025 * (share - left_natural / (left + left_natural))
        assert learner.balance_of_teachers() == pytest.approx(share)
    assert share != 0.5


def test_the_balance_slows_down_with_the_rate():
    learner, _, _, _, x, y = start(two=True)
    learner.balance = Balance(first=(1e3, 1e-3))  # nearly all is left of the natural teacher's
    learner.controller.rate = learner.first_rate / 10
    learner.begin(0, 6)
    one_step(learner, x, learner.attack(x, y), y)
    assert learner.balance.natural == pytest.approx(0.5 + 0.0025 * 0.5, rel=1e-3)


# --- whole runs ------------------------------------------------------------------------------------------------------


def tune(model=None, classes=3, **changes):
    settings = QUICK | {"reference": "best", "method": "distill", "epochs": 2} | changes
    return finetune(model or network(), images(36, size=16), images(12, 1, size=16), THREAT, **settings)


def digest(tuned):
    return weights_sha256(tuned.model.state_dict())


def small(classes=3, **changes):
    options = {"channels": [4, 4, 8, 8], "stem_width": 4}
    return load_backbone("resnet10t", None, classes, image_size=16, options=options, **changes)


def test_a_first_pass_is_autolora_and_the_same_as_its_file(tmp_path):
    first = tune(small(), method="autolora", epochs=1)
    save_classifier(first.model, tmp_path / "teacher.safetensors")
    from_file = tune(small(), teacher=tmp_path / "teacher.safetensors", epochs=1)
    by_itself = tune(small(), teacher="first_pass", epochs=1)
    assert digest(from_file) == digest(by_itself) != digest(first)
    assert by_itself.first_pass[-1]["loss"] == first.history[-1]["loss"]
    assert from_file.first_pass is None
    natural = tune(small(), method="natural", epochs=1)
    save_classifier(natural.model, tmp_path / "natural.safetensors")
    files = {"teacher": tmp_path / "teacher.safetensors", "natural_teacher": str(tmp_path / "natural.safetensors")}
    assert digest(tune(small(), **files, epochs=1)) == digest(tune(small(), **TWO, epochs=1)) != digest(by_itself)


def test_a_run_that_was_killed_in_any_phase_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole, keep = tune(**TWO, start="robust_head"), loop.keep
    for phase, epoch in (("natural", 1), ("madry", 1), ("autolora", 1), ("distill", 1), ("distill", 2)):

        def kept(learner, done, file, phase=phase, epoch=epoch):
            keep(learner, done, file)
            if (learner.settings.method, done.epoch) == (phase, epoch):
                raise KeyboardInterrupt

        monkeypatch.setattr(loop, "keep", kept)
        with pytest.raises(KeyboardInterrupt):
            tune(**TWO, start="robust_head", checkpoints=tmp_path)
    monkeypatch.setattr(loop, "keep", keep)
    again = tune(**TWO, start="robust_head", checkpoints=tmp_path)
    assert digest(again) == digest(whole)
    assert len(again.head) == 1
    assert sorted(file.name.split("-")[0] for file in tmp_path.glob("*.pt")) == [
        "autolora",
        "distill",
        "madry",
        "natural",
    ]


def test_another_teacher_is_another_run(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        teacher = small()
        teacher.body.get_classifier().weight.data.normal_()
        save_classifier(teacher, tmp_path / "teacher.safetensors")
        tune(epochs=1, teacher=tmp_path / "teacher.safetensors", checkpoints=tmp_path)
    assert len(list(tmp_path.glob("distill-*.pt"))) == 2


def test_a_teacher_that_normalises_otherwise_is_another_one(tmp_path):
    """With the same weights, in the same file."""
    trained = []
    for mean in (0.0, 0.5, 0.5):
        torch.manual_seed(0)
        save_classifier(small(mean=[mean], std=[1.0]), tmp_path / "teacher.safetensors")
        taught = {"teacher": tmp_path / "teacher.safetensors", "checkpoints": tmp_path / "kept"}
        tune(epochs=1, **taught, on_epoch=lambda record, mean=mean: trained.append(mean))
    assert trained == [0.0, 0.5]


class Viewing(torch.nn.Module):
    """As an ordinary LeNet: a view knows one order in memory alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Linear(8 * 64, 3)

    def forward(self, x):
        return self.head(self.stem(x).relu().view(len(x), -1))


@pytest.mark.parametrize("viewing", ["robust", "natural"])
def test_a_teacher_that_views_its_features_as_rows_teaches_one_in_channels_last(viewing):
    torch.manual_seed(0)
    rows, other = Viewing().requires_grad_(False).eval(), wide_enough().requires_grad_(False).eval()
    taught = Teachers(rows, other) if viewing == "robust" else Teachers(other, rows)
    part = tuple(torch.as_tensor(p) for p in images(12))
    settings = Settings(THREAT, "distill", "best", batch_size=6, precision="float32", attack="pgd", **TWO)
    learner = Learner(wide_enough(), part, part, settings, torch.device("cpu"), teachers=taught)
    assert learner.speed.layout == torch.channels_last
    assert other.stem.weight.is_contiguous(memory_format=torch.channels_last)
    x, y = loop.prepare(learner, part[0][:6], torch.arange(6), 1, 0)
    assert torch.equal(learner._taught(rows, x), rows(x.contiguous()))
    one_step(learner, x, learner.attack(x, y), y)


@pytest.mark.parametrize("model", [partial(transformer, 16), without_batch_norm])
def test_other_networks(model):
    assert tune(model(), epochs=1, **TWO).history[0]["loss"] > 0


@pytest.mark.parametrize(
    "changes", [{"attack": "single"}, {"weight_attack": 0.01}, {"trains": "lora"}, {"augmentation": "cutmix"}]
)
def test_other_axes(changes, tmp_path):
    save_classifier(small(), tmp_path / "teacher.safetensors")
    tuned = tune(epochs=1, teacher=tmp_path / "teacher.safetensors", **changes)
    assert tuned.history[0]["loss"] > 0


# --- what cannot be meant --------------------------------------------------------------------------------------------


def test_teachers_that_do_not_fit_are_refused_before_the_first_step(tmp_path):
    save_classifier(small(5), tmp_path / "five.safetensors")
    (tmp_path / "text.safetensors").write_text("no network")
    said = []
    for changes, message in (
        (
            {"teacher": tmp_path / "five.safetensors"},
            "teacher is .*: it knows 5 classes, and the network that learns 3",
        ),
        ({**TWO, "natural_teacher": tmp_path / "five.safetensors"}, "natural_teacher is .*: it knows 5 classes"),
        ({"teacher": tmp_path / "text.safetensors"}, "teacher is .*: .* damaged or truncated"),
        ({"teacher": network()}, "teacher is a Small: expected the path of a file of .*, or first_pass"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(on_epoch=said.append, **changes)
    assert said == []


def test_a_network_is_known_again_wherever_its_functions_lie():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.function = lambda x: x

        def extra_repr(self) -> str:
            return f"{self.function}"

    assert " at 0x" in repr(Odd())
    assert layers(Odd()) == layers(Odd())
