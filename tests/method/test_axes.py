"""Where the head starts, what is trained, how the threat and the rate begin: what each axis promises."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from autolora.common.files import weights_sha256
from autolora.threat import Threat
from autolora.training import axes, loop
from autolora.training.attack import TrainingAttack, reach
from autolora.training.branch import head_parameters, load_deltas, save_branch
from autolora.training.controllers import Measured, SlowStart
from autolora.training.learner import Learner
from autolora.training.loop import finetune, one_step
from autolora.training.objectives import METHODS
from autolora.training.phases import first_pass, robust_head, twin
from autolora.training.settings import Settings
from stages.common.params import Finetune
from stages.finetune import how
from tests.method.small import QUICK, THREAT, Tied, images, network


def tune(method="autolora", threat=THREAT, **changes):
    settings = {**QUICK, "method": method, "reference": "best", **changes}
    return finetune(network(), images(48), images(12, 1), threat, **settings)


# --- the head first --------------------------------------------------------------------------------------------------


def test_a_robust_head_first_and_the_body_untouched(monkeypatch):
    given = []
    learner = loop.Learner
    monkeypatch.setattr(loop, "Learner", lambda model, *a, **k: given.append(model) or learner(model, *a, **k))
    tuned = tune(start="robust_head", epochs=4)
    before, after = (model.state_dict() for model in given)
    head = head_parameters(network())
    assert {name for name in before if not torch.equal(before[name], after[name])} == head
    assert len(tuned.head) == 2
    head = how(Finetune(), tuned)["head"]  # in finetuned.json
    assert [record["epoch"] for record in head] == [1, 2]
    assert head[1]["val_robust"] == pytest.approx(tuned.head[1]["val_robust"], abs=1e-6)
    assert "head" not in how(Finetune(), tune(epochs=1))
    assert "2 epochs of the head alone" in repr(tuned)
    assert len(tuned.history) == 4
    assert tune(epochs=1).head is None


def test_the_head_with_most_hits_goes_on_and_its_rate_finds_itself(monkeypatch):
    """Planted: most validation images withstand after the third epoch, as many after the fifth, fewer at the end."""
    planted, heads, given, learner = [1, 2, 9, 8, 9, 8], [], [], loop.Learner

    def hits(learner):
        if len(heads) < len(planted):
            heads.append({name: value.clone() for name, value in learner.model.state_dict().items()})
            return torch.arange(12) < planted[len(heads) - 1]
        return torch.arange(12) < 6

    monkeypatch.setattr("autolora.training.judgement.robust_hits", hits)
    monkeypatch.setattr("autolora.training.learner.first_rate", lambda power: 0.02)
    monkeypatch.setattr(loop, "Learner", lambda model, *a, **k: given.append(model) or learner(model, *a, **k))
    tuned = tune(start="robust_head", epochs=12)
    assert [round(12 * record["val_robust"]) for record in tuned.head] == planted
    _, start = given
    assert all(torch.equal(value, heads[2][name]) for name, value in start.state_dict().items())
    assert tuned.head[0]["lr"] == 0.02


def test_a_head_is_trained_without_a_term_that_nobody_asked_for():
    settings = Settings(Threat("linf", "16/255"), "madry", "best", start="robust_head", attack="pgd")
    head = robust_head(settings)
    assert TrainingAttack(head, torch.device("cpu"), torch.contiguous_format).single
    assert TrainingAttack(head, torch.device("cpu"), torch.contiguous_format).straight is None  # ELLE-A's
    assert robust_head(replace(settings, threat=Threat("l2", 0.5))).attack == "pgd"


def test_what_runs_that_come_first_take_over_from_the_run():
    """How images are drawn and computed: of the axes the head and the twin have none, the first pass those of a loss on
    attacked images. No rate, no decay and no teacher is theirs."""
    drawn = {"epochs": 9, "seed": 3, "batch_size": 12, "augmentation": "crop", "precision": "float32", "compile": False}
    axes_of_it = {"weight_attack": 0.01, "eps_schedule": "ramp", "start": "robust_head", "attack": "single"}
    own = {"rate": 0.5, "decay": 0.1, "teacher": "first_pass", "natural_teacher": "twin"}
    blocks = {"trains": "blocks", "blocks": ("mix",)}
    asked = Settings(THREAT, "distill", "slow_start", average=0.9, **drawn, **axes_of_it, **own, **blocks)
    head = {**drawn, "epochs": 4, "start": "robust_head", "trains": "head", "eps_schedule": "constant"}
    assert robust_head(asked) == Settings(THREAT, "madry", "best", **head)
    assert first_pass(asked) == Settings(THREAT, "autolora", "slow_start", average=0.9, **drawn, **axes_of_it)
    assert twin(asked) == Settings(THREAT, "natural", "slow_start", average=0.9, **drawn, eps_schedule="constant")


def test_a_run_killed_in_either_phase_ends_as_one_that_was_not(tmp_path):
    whole = tune(start="robust_head", epochs=4)
    for killed_in, after in (("head", 1), ("body", 2)):
        folder = tmp_path / killed_in
        stop_after(after, folder, in_head=killed_in == "head")
        assert weights_sha256(tune(start="robust_head", epochs=4, checkpoints=folder).model.state_dict()) == (
            weights_sha256(whole.model.state_dict())
        )


def stop_after(epoch, folder, *, in_head):
    keep = loop.keep

    def kept(learner, done, file):
        keep(learner, done, file)
        if done.epoch == epoch and (learner.settings.trains == "head") == in_head:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "keep", kept)
        with pytest.raises(KeyboardInterrupt):
            tune(start="robust_head", epochs=4, checkpoints=folder)


# --- a low-rank change alone -----------------------------------------------------------------------------------------


def low_rank(dtype=torch.float64):
    torch.manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8, dtype=dtype), torch.arange(6) % 3
    settings = Settings(THREAT, "vanilla", "best", batch_size=6, precision="float32", trains="lora")
    learner = Learner(network().to(dtype), (x, y), (x, y), settings, torch.device("cpu"))
    learner.model.train()
    return learner, x, y


def test_low_rank_training_starts_as_the_backbone_and_leaves_its_weights():
    learner, x, y = low_rank()
    model = network().double().eval()
    assert torch.allclose(learner.model.eval()(x), model(x), atol=1e-12)
    learner.model.train()
    learner.begin(0, 6)
    one_step(learner, x, learner.attack(x, y), y)
    kept = {n: p for n, p in learner.model.named_parameters() if n.endswith("original")}
    before = dict(model.named_parameters())
    assert len(kept) == 4  # of the blocks: not of stem and head
    for name, weight in kept.items():
        assert torch.equal(weight, before[name.replace("parametrizations.", "").replace(".original", "")]), name
    assert torch.equal(learner.model.stem.weight, model.stem.weight)
    moved = {n for n, p in learner.model.named_parameters() if n.endswith(".B") and p.abs().max() > 0}
    assert len(moved) == 4


def test_the_attack_sees_the_change_and_the_fold_keeps_the_function():
    learner, x, _ = low_rank()
    for name, parameter in learner.model.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(0, 0.3)
    learner.model.eval()
    learner.folded.refresh()
    changed = learner.model(x)
    assert not torch.allclose(changed, network().double().eval()(x), atol=1e-3)
    assert torch.allclose(learner.attack_view(x), changed)
    names = set(network().state_dict())
    dense = learner.finished()
    assert torch.allclose(dense(x), changed, atol=1e-12)
    assert set(dense.state_dict()) == names


def test_a_weight_that_layers_share_gets_one_change_in_all_of_them():
    """Judged and shipped it is the same function."""
    torch.manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    settings = Settings(THREAT, "madry", "best", batch_size=6, precision="float32", trains="lora", average=0.5)
    learner = Learner(Tied().double(), (x, y), (x, y), settings, torch.device("cpu"))
    learner.model.train()
    learner.begin(0, 6)
    for _ in range(2):  # an average begins as the first state
        one_step(learner, x, learner.attack(x, y), y)
    changed, shared = learner.shipped()(x), learner.shipped().b.weight.detach().clone()
    assert not torch.equal(shared, Tied().double().b.weight)
    dense = learner.finished()
    assert torch.allclose(dense(x), changed, atol=1e-12)
    assert dense.a.weight is dense.b.weight
    assert torch.equal(dense.a.weight, shared)
    assert set(dense.state_dict()) == set(Tied().state_dict())


def test_low_rank_runs_end_to_end_as_a_plain_network():
    tuned = tune("madry", trains="lora")
    assert set(tuned.model.state_dict()) == set(network().state_dict())
    assert tuned.branch is None


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(8),
        nn.InstanceNorm2d(8, affine=True),
        nn.GroupNorm(2, 8),
        nn.RMSNorm([8, 6, 6]),
        timm.layers.LayerNorm2d(8),
        timm.layers.RmsNorm(6),
        timm.layers.RmsNorm2d(8),
        timm.layers.RmsNormFp32(6),
        timm.layers.RmsNorm2dFp32(8),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_the_norms_are_trained_beside_a_low_rank_change(norm):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8, 3))
    settings = QUICK | {"method": "madry", "epochs": 1, "trains": "lora"}
    after = finetune(model, images(16), images(6, 1), THREAT, **settings).model.get_submodule("1")
    for name, weight in norm.named_parameters():
        assert not torch.equal(after.get_parameter(name), weight), name


@pytest.mark.parametrize("trains", ["all", "lora"])
def test_a_weight_that_the_caller_computes_stays_computed(trains):
    """In what comes back, and in the caller's own network."""
    model = network()
    weight_norm(model.conv2)
    before, x = weights_sha256(model.state_dict()), torch.rand(2, 3, 8, 8)
    tuned = finetune(model, images(48), images(12, 1), THREAT, method="madry", trains=trains, **QUICK | {"epochs": 1})
    assert weights_sha256(model.state_dict()) == before
    assert tuned.model.state_dict().keys() == model.state_dict().keys()
    model.load_state_dict(tuned.model.state_dict())
    assert torch.equal(model.eval()(x), tuned.model(x))


# --- the threat and the rate at the beginning ------------------------------------------------------------------------


def test_the_ramp_is_nothing_then_a_line_then_the_threat():
    settings = Settings(THREAT, epochs=20, eps_schedule="ramp")
    assert [round(reach(settings, e), 10) for e in (1, 5, 6, 10, 15, 16, 20)] == [0, 0, 0.1, 0.5, 1, 1, 1]
    assert {reach(Settings(THREAT, epochs=20), e) for e in range(1, 21)} == {1.0}


def test_states_are_compared_under_the_whole_threat_alone():
    tuned = tune(epochs=8, eps_schedule="ramp")
    seen = [record["val_robust"] is not None for record in tuned.history]
    assert seen == [False] * 5 + [True] * 3
    assert tuned.best_epoch >= 6


def test_epochs_count_for_the_rate_while_eps_grows():
    tuned = tune("madry", epochs=20, eps_schedule="ramp", reference="slow_start")
    rule, rates = SlowStart(METHODS["madry"].rate, 20), []
    for epoch in range(1, 21):
        rates.append(rule.rate)
        rule.observe(Measured(epoch, epoch, 0.0, None))
    assert [record["lr"] for record in tuned.history] == pytest.approx(rates)
    assert max(rates) == METHODS["madry"].rate
    assert tuned.best_epoch >= 15  # eps is whole from there on


@pytest.mark.parametrize("method", ["vanilla", "twins", "natural"])
def test_slow_start_takes_the_place_of_a_method_s_own_rule(method):
    attacked = {} if method == "natural" else {"attack": "pgd"}
    tuned = tune(method, epochs=10, reference="slow_start", **attacked)
    rates = [record["lr"] / METHODS[method].rate for record in tuned.history]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.5])


def test_validation_is_looked_at_eight_times_after_eps_is_whole():
    learner = made(epochs=40, eps_schedule="ramp")
    assert learner.controller.every == 1
    assert sum(reach(learner.settings, e) == 1 and learner.controller.wants(e) for e in range(1, 41)) == 11
    assert made(epochs=40, eps_schedule="constant").controller.every == 5


def made(**changes):
    """96 images to train on and 120 to validate on: a look is as dear as four epochs, and eight are wanted."""
    train, val = (tuple(map(torch.from_numpy, part)) for part in (images(96), images(120, 1)))
    return Learner(network(), train, val, Settings(THREAT, "madry", "best", **changes), torch.device("cpu"))


def test_slow_start_fast_decay():
    rule = SlowStart(0.05, 10)
    rates = []
    for epoch in range(1, 11):
        rates.append(rule.rate)
        rule.observe(Measured(epoch, epoch, 0.1))
    expected = [0.01, 0.02, 0.03, 0.04, 0.05, 0.025, 0.0125, 0.00625, 0.003125, 0.0015625]
    assert rates == pytest.approx(expected)
    long, again = SlowStart(1.0, 60), SlowStart(1.0, 60)
    levels = []
    for epoch in range(1, 61):
        levels.append(long.rate)
        long.observe(Measured(epoch, epoch, 0.1))
        again.load(long.state())
        assert again.rate == long.rate
    assert all(len(set(levels[i : i + 6])) == 1 for i in range(0, 60, 6))  # each level for six epochs
    assert levels.count(max(levels)) == 6


@pytest.mark.parametrize("rank", [1, 4])
def test_the_rank_is_the_branch_s_and_is_kept_with_it(tmp_path, rank):
    """A has r rows and B r columns, of a convolution r for each row of its kernel; what is folded later is BA / r."""
    tuned = tune(rank=rank, reference="paper", epochs=2)
    layers, factors = dict(network().named_modules()), tuned.branch.factors()
    assert tuned.branch.rank == rank
    for name in tuned.branch.names:
        height = layers[name].weight.shape[2] if layers[name].weight.dim() == 4 else 1
        assert factors[f"{name}.A"].shape[0] == factors[f"{name}.B"].shape[1] == rank * height
    save_branch(tuned.branch, tmp_path / "branch.safetensors")
    loaded = load_deltas(tmp_path / "branch.safetensors")
    for name in tuned.branch.names:
        delta = factors[f"{name}.B"] @ factors[f"{name}.A"] / rank
        assert torch.allclose(loaded[f"{name}.weight"], delta.view(layers[name].weight.shape))


def test_the_rank_of_what_lora_trains():
    """Of a change as the matrix that it is made as: a row for each output of a group and each row of the kernel."""
    before, layers = network().state_dict(), dict(network().named_modules())
    after = tune("madry", trains="lora", rank=1, epochs=2).model.state_dict()
    convolutions = [name for name, weight in before.items() if weight.dim() == 4 and weight.shape[2] > 1]
    changes = {name: (after[name] - before[name]).double() for name in convolutions}
    moved = {name: change for name, change in changes.items() if change.abs().max() > 0}
    assert moved
    for name, change in moved.items():
        height = change.shape[2]
        matrix = change.reshape(len(change) // layers[name.removesuffix(".weight")].groups * height, -1)
        assert min(matrix.shape) > height
        assert torch.linalg.matrix_rank(matrix, rtol=1e-4) <= height, name


# --- what excludes each other ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "natural", "attack": "single"}, "attack is 'single': method natural has no attack"),
        ({"method": "linear", "attack": "pgd"}, "attack is 'pgd': method linear has no attack"),
        ({"method": "linear", "eps_schedule": "ramp"}, "eps_schedule is 'ramp': method linear has no attack"),
        ({"method": "linear", "start": "robust_head"}, "start is 'robust_head': method linear has no attack"),
        ({"method": "natural", "weight_attack": 0.01}, "weight_attack is 0.01: method natural has no attack"),
        ({"attack": "single", "threat": Threat("l2", 0.5)}, "attack is 'single': norm is l2"),
        ({"trains": "lora"}, "trains is 'lora': method autolora says itself what is trained"),
        ({"method": "madry", "trains": "lora", "weight_attack": 0.01}, "weight_attack is 0.01: trains is lora"),
        ({"eps_schedule": "ramp", "reference": "paper"}, "eps_schedule is 'ramp': reference paper judges"),
        ({"method": "arow", "augmentation": "cutmix"}, "augmentation is 'cutmix': method arow weighs each image"),
        (
            {"augmentation": "interpolate"},
            "augmentation is 'interpolate': method autolora compares .* set method to madry",
        ),
        ({"method": "distill"}, "method is 'distill': teacher is none: give a classifier file, or first_pass"),
        ({"teacher": "first_pass"}, "teacher is 'first_pass': method autolora has no teacher: set method to distill"),
        ({"natural_teacher": "twin"}, "natural_teacher is 'twin': method autolora has no teacher"),
        ({"method": "distill", "teacher": "no.file"}, "teacher is 'no.file': there is no such file"),
        (
            {"method": "distill", "teacher": "first_pass", "natural_teacher": "first_pass"},
            "natural_teacher is 'first_pass': there is no such file: give a classifier file, or twin",
        ),
        (
            {"method": "distill", "teacher": "first_pass", "smoothing": 0.1},
            "smoothing is 0.1: method distill learns from its teacher's answers, not from labels",
        ),
        ({"method": "vanilla", "rank": 4}, "rank is 4: method vanilla has no low-rank branch, and trains is all, not"),
        ({"method": "natural", "rank": 4}, "rank is 4: method natural has no low-rank branch"),
        ({"rank": 0}, "rank is 0: expected a whole number from 1"),
        ({"smoothing": 0.5}, "smoothing is 0.5: expected a number from 0 to 0.3"),
        ({"weight_attack": -1.0}, r"weight_attack is -1.0: expected a number from 0 to 0.1"),
        ({"attack": "fgsm"}, "attack is 'fgsm': expected one of pgd, single, auto"),
        ({"start": "random"}, "start is 'random': expected one of pretrained, robust_head"),
    ],
)
def test_refused_before_the_first_step_with_both_keys(changes, message):
    with pytest.raises(ValueError, match=message):
        tune(**changes)


def test_the_axes_know_the_methods():
    assert set(axes.NO_ATTACK) == {name for name, method in METHODS.items() if not method.attacked}
    assert set(axes.APART) == {name for name, method in METHODS.items() if method.interpolated}
    assert set(axes.OWN_PARTS) == {name for name, method in METHODS.items() if method.parts or method.head_only}


def test_weights_are_attacked_after_a_twentieth_of_the_epochs(monkeypatch):
    steps, perturb = [], Learner.perturb_weights
    monkeypatch.setattr(Learner, "perturb_weights", lambda self, *batch: steps.append(1) or perturb(self, *batch))
    finetune(
        network(), images(16), images(12, 1), THREAT, method="madry", weight_attack=0.005, **QUICK | {"epochs": 20}
    )
    assert len(steps) == 19  # one batch an epoch, and the first epoch is plain


def test_most_hits_choose_a_head_alone_and_no_more():
    def most(**changes):
        part = tuple(torch.as_tensor(p) for p in images(24))
        settings = Settings(THREAT, "madry", "best", precision="float32", **changes)
        return Learner(network(), part, part, settings, torch.device("cpu")).controller.most

    assert most(trains="head")
    assert most(trains="blocks", blocks=())  # of a search for blocks, the try without any
    assert not most(trains="blocks", blocks=("conv1",))
    assert not most()


def test_the_twin_computes_as_the_run_does():
    """And none of the run's own axes is its own."""
    own = {"precision": "float32", "compile": False, "channels_last": False, "epochs": 7, "batch_size": 12, "seed": 3}
    found = twin(Settings(THREAT, "distill", "best", **own, smoothing=0.1, start="robust_head", eps_schedule="ramp"))
    assert {key: getattr(found, key) for key in own} == own
    assert (found.method, found.smoothing, found.start, found.eps_schedule) == (
        "natural",
        0.0,
        "pretrained",
        "constant",
    )
