"""finetune() as a user meets it: methods, records, bad input, randomness, resuming, data that stays in its file."""

import copy
import dataclasses
import importlib.util
import linecache
import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

import autolora
from autolora.attacks.pgd import pgd
from autolora.backbones.loading import load_backbone
from autolora.common.files import AtWork, weights_sha256
from autolora.data.ragged import rectangles
from autolora.threat import Threat
from autolora.training import learner, measuring, objectives, speed
from autolora.training import loop as training
from autolora.training.averaging import following
from autolora.training.controllers import StepRate
from autolora.training.diverged import check_losses
from autolora.training.loop import Diverged, finetune
from autolora.training.objectives import Losses, Method, cross_entropy
from autolora.training.possible import batches
from autolora.training.resume import computed_by
from autolora.training.settings import Settings, as_split, decided
from tests.method.small import QUICK, THREAT, images, network, wide_enough


def tune(method="autolora", train=None, val=None, model=None, threat=THREAT, **changes):
    settings = {"method": method, **QUICK, **changes}
    return finetune(model or network(), train or images(48), val or images(12, 1), threat, **settings)


def digest(tuned):
    return weights_sha256(tuned.model.state_dict())


@pytest.mark.parametrize(("method", "reference"), [*((m, "paper") for m in objectives.METHODS), ("twins", "released")])
def test_every_method_trains_and_keeps_its_best_state(method, reference):
    teachers = {"teacher": "first_pass"} if method == "distill" else {}
    tuned = tune(method, reference=reference, epochs=2, **teachers)
    keys = {"lr", "lambda1", "lambda2", "loss", "loss_natural", "loss_adversarial", "loss_kl", "natural_accuracy"}
    keys |= {"epoch", "val_clean", "val_robust", "gradient_cosine", "event", "images_per_second", "peak_memory_mb"}
    assert all(keys <= set(record) for record in tuned.history)
    assert not tuned.model.training
    assert "best" in tuned.best["event"]
    score = "val_robust" if objectives.METHODS[method].attacked else "val_clean"
    assert tuned.best[score] == max(record[score] for record in tuned.history)
    assert 0 <= tuned.best["val_robust"] <= 1
    assert (tuned.branch is not None) == (method == "autolora")


def test_the_shipped_weights_are_those_that_were_validated():
    tuned = tune(epochs=4)
    x, y = images(12, 1)
    right = tuned.model(torch.from_numpy(x).float() / 255).argmax(1) == torch.from_numpy(y)
    assert right.float().mean().item() == pytest.approx(tuned.best["val_clean"])
    assert isinstance(autolora.merge(tuned, 0.5), type(network()))


def test_the_given_network_is_left_alone():
    model = network()
    before = copy.deepcopy(model.state_dict())
    tune(model=model, epochs=1)
    assert weights_sha256(model.state_dict()) == weights_sha256(before)


def test_linear_moves_the_head_alone():
    before, after = network().state_dict(), tune("linear", epochs=2).model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}


def test_a_further_method_is_one_function_and_one_line(monkeypatch):
    """Adversarial training: neither the loop nor the learner knows of it."""

    def mine(net, x, attacked, y, weights):
        z = net.plain(attacked)
        loss = cross_entropy(net, z, y)
        return Losses(loss, loss.new_zeros(()), loss.detach(), loss.new_zeros(()), objectives.accuracy(net, z, y))

    monkeypatch.setitem(objectives.METHODS, "mine", Method(mine, 0.05, controller=StepRate))
    tuned = tune("mine", epochs=4)
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    assert tuned.branch is None


def test_a_further_reference_is_one_line(monkeypatch):
    """Another controller: what `reference` chooses."""
    entry = dataclasses.replace(objectives.REFERENCES["paper"], controller=StepRate)
    monkeypatch.setitem(objectives.REFERENCES, "mine", entry)
    tuned = tune(reference="mine", epochs=6)
    assert [r["lr"] for r in tuned.history] == pytest.approx([0.01] * 3 + [0.001] * 2 + [0.0001])


# --- bad input: before the first step --------------------------------------------------------------------------------


class Flat(nn.Module):
    """No layer between stem and head."""

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Linear(3, classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def relabelled(n, labels):
    return images(n)[0], np.asarray(labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "autolore"}, r"method is 'autolore': expected one of autolora, vanilla"),
        ({"reference": "papr"}, r"reference is 'papr'"),
        ({"augmentation": "mixup"}, r"augmentation is 'mixup'"),
        ({"precision": "fp16"}, r"precision is 'fp16'"),
        ({"compile": "yes"}, r"compile is 'yes': expected one of auto, True, False"),
        ({"channels_last": "false"}, r"channels_last is 'false': expected one of auto, True, False"),
        ({"epochs": 0}, r"epochs is 0: expected a whole number from 1"),
        ({"batch_size": 1}, r"batch_size is 1: expected a whole number from 2"),
        ({"epochs": 2.5}, r"epochs is 2.5: expected a whole number from 1"),
        ({"epochs": "3"}, r"epochs is '3': expected a whole number from 1"),
        ({"seed": 0.5}, r"seed is 0.5: expected a whole number"),
        ({"method": ["madry"]}, r"method is \['madry'\]: expected one of autolora"),
        ({"average": 1.5}, r"average is 1\.5"),
        ({"average": "x"}, r"average is 'x': expected a decay between 0 and 1"),
        ({"smoothing": "0.1"}, r"smoothing is '0.1': expected a number from 0 to 0.3"),
        ({"smoothing": None}, r"smoothing is None: expected a number from 0 to 0.3"),
        ({"rate": 0.0}, r"rate is 0.0: expected a number above 0"),
        ({"rate": float("nan")}, r"rate is nan: expected a number above 0"),
        ({"gamma": -1}, r"gamma is -1: expected a number from 0"),
        ({"trains": "blocks", "method": "madry", "blocks": 5}, r"blocks is 5: expected names of blocks"),
        ({"trains": "blocks", "method": "madry", "blocks": "conv9"}, r"blocks is 'conv9': the network has "),
        ({"model": Flat()}, "nothing to branch"),
        ({"model": Flat(), "method": "twins"}, "no batch norm"),
        ({"model": network(1)}, "the network has 1 class"),
        ({"model": nn.Flatten()}, "no parameters"),
        ({"train": (np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, int))}, "the training part is empty"),
        ({"val": (np.zeros((0, 3, 8, 8), np.uint8), np.zeros(0, int))}, "the validation part is empty"),
        ({"train": relabelled(6, [1] * 6)}, "only class 1: at least two"),
        ({"train": relabelled(6, [0, 1, 2, 3, 0, 1]), "val": relabelled(4, [0, 1, 2, 3])}, "classes 0 to 2"),
        ({"train": relabelled(6, [0, 1, 2, -1, 0, 1]), "val": relabelled(4, [0, 1, 2, -1])}, "from -1 to 2"),
        ({"val": relabelled(4, [0, 1, 1, 0])}, r"no validation image of class 2: the best state"),
        ({"train": relabelled(6, [0.5] * 6)}, "whole numbers"),
        ({"train": relabelled(6, [0, 1])}, "expected 6 whole numbers"),
        ({"train": (images(6)[0][:, :1], images(6)[1])}, r"shape \(6, 1, 8, 8\)"),
        ({"train": (images(6)[0].transpose(0, 2, 3, 1), images(6)[1])}, r"expected \[n, 3, side, side\]"),
        ({"train": (images(6)[0].astype("int32"), images(6)[1])}, "int32: expected uint8"),
        ({"train": (images(6)[0].astype("float32"), images(6)[1])}, r"expected uint8, or floats in \[0, 1\]"),
        ({"train": (np.full((6, 3, 8, 8), np.nan, "float32"), images(6)[1])}, "go from nan"),
        ({"val": images(12, size=16)}, "smaller than validation's"),
    ],
)
def test_bad_input_is_named_before_the_first_step(changes, message):
    with pytest.raises(ValueError, match=message):
        tune(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trains": "lora", "method": "madry"}, "trains is 'lora': the network has no convolution"),
        ({"trains": "prominent", "method": "madry"}, "trains is 'prominent': the network has no convolution"),
        ({"method": "twins"}, "method is 'twins': the network has no batch norm"),
        ({"method": "distill", "teacher": "first_pass", "natural_teacher": "twin"}, "nothing to branch"),
        ({"method": "madry", "train": images(3), "batch_size": 2, "reference": "best"}, None),
        ({"method": "twins", "model": network(), "train": images(3)}, "no batch to train on: 3 images"),
    ],
)
def test_what_a_network_lacks_is_said_before_any_phase(monkeypatch, changes, message):
    """The head alone, a first pass and a twin would all be trained before the method itself."""
    trained: list[int] = []
    monkeypatch.setattr(training, "train_epoch", lambda *arguments: trained.append(1) or pytest.fail("trained"))
    with pytest.raises(ValueError if message else pytest.fail.Exception, match=message or "trained"):
        tune(**{"model": Flat(), "start": "robust_head" if "teacher" not in changes else "pretrained", **changes})
    assert bool(trained) == (message is None)


def test_a_loss_that_is_no_number_stops_with_epoch_step_and_the_last_good_state(tmp_path):
    def poison(record):
        if record["epoch"] == 2:
            x[40:] = np.nan

    x, y = images(48)
    x = x.astype("float32") / 255
    with pytest.raises(Diverged, match=r"loss is nan in epoch 3, step \d.*after epoch 2, is in .*autolora-\w+\.pt"):
        tune(train=(torch.from_numpy(x), y), checkpoints=tmp_path, on_epoch=poison, epochs=5)
    (file,) = tmp_path.glob("*.pt")
    assert torch.load(file, weights_only=True)["progress"]["epoch"] == 2


# --- randomness and resuming -----------------------------------------------------------------------------------------


def test_the_global_random_state_neither_matters_nor_moves():
    model = network()
    torch.manual_seed(1)
    first = tune(model=model)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = tune(model=model)
    assert digest(first) == digest(second)
    assert torch.equal(torch.get_rng_state(), state)
    assert digest(first) != digest(tune(seed=1))


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["autolora", "twins"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, method):
    changes = {"epochs": 11, "average": 0.9} if method == "autolora" else {"epochs": 4}
    whole = tune(method, **changes)

    def cut(record):
        seen.append(record["epoch"])
        raise Killed

    seen: list[int] = []
    for _ in range(changes["epochs"]):  # killed after every epoch
        with pytest.raises(Killed):
            tune(method, checkpoints=tmp_path, on_epoch=cut, **changes)
    again = tune(method, checkpoints=tmp_path, on_epoch=cut, **changes)  # nothing is left to train
    assert seen == list(range(1, changes["epochs"] + 1))
    assert digest(again) == digest(whole)
    assert again.right == whole.right
    timeless = [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second", "peak_memory_mb")}
        for r in whole.history
    ]
    assert [{k: r[k] for k in timeless[0]} for r in again.history] == timeless
    if method == "autolora":
        assert weights_sha256(again.branch.factors()) == weights_sha256(whole.branch.factors())
        assert any("halved" in r["event"] for r in whole.history)


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": "single", "threat": Threat("linf", "16/255")},  # with the history of ELLE-A's bend
        {"eps_schedule": "ramp", "attack": "single"},
        {"trains": "lora"},
        {"weight_attack": 0.01},
        {"reference": "slow_start"},
    ],
    ids=["elle", "ramp", "lora", "awp", "slow"],
)
def test_a_run_on_another_axis_goes_on_with_the_same_bits(tmp_path, changes):
    how = {"epochs": 8, "reference": "best", **changes}
    whole = tune("madry", **how)

    def cut(record):
        if record["epoch"] % 3 == 0:
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            tune("madry", checkpoints=tmp_path, on_epoch=cut, **how)
    again = tune("madry", checkpoints=tmp_path, on_epoch=cut, **how)
    assert digest(again) == digest(whole)
    for key in ("lr", "loss", "val_robust", "event"):
        assert [record[key] for record in again.history] == [record[key] for record in whole.history]


def test_a_checkpoint_of_another_network_with_the_same_weights_is_not_picked_up(tmp_path):
    """What is no weight: the normaliser, and what a layer does."""

    def classifier(**changes):
        return load_backbone(
            arch="resnet10t",
            stem="lowres",
            classes=3,
            options={"channels": [4] * 4, "stem_width": 4, **changes.pop("options", {})},
            **changes,
        )

    tune(model=classifier(), epochs=1, checkpoints=tmp_path)
    for changes in ({}, {"mean": [0.1], "std": [0.3]}, {"network_size": 16}, {"options": {"drop_rate": 0.5}}):
        seen = []
        tune(
            model=classifier(**changes),
            epochs=1,
            checkpoints=tmp_path,
            on_epoch=lambda r, seen=seen: seen.append(r["epoch"]),
        )
        assert seen == ([1] if changes else [])


class Holding(nn.Module):
    """What it computes by is no weight, and it prints nothing of it."""

    def __init__(self, held):
        super().__init__()
        torch.manual_seed(0)
        self.held, self.stem, self.head = held, nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        held = self.held["scale"] if isinstance(self.held, dict) else self.held
        scaled = held(x) if callable(held) else x * torch.as_tensor(held, dtype=x.dtype).view(1, -1, 1, 1)
        return self.head(self.stem(scaled).relu().mean((2, 3)))


class Encoding(nn.Module):
    """torch's own layer prints neither its heads nor where it normalises."""

    def __init__(self, **changes):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.encoder = nn.TransformerEncoderLayer(8, dim_feedforward=8, dropout=0.0, batch_first=True, **changes)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


def times(factor):
    return lambda x: x * factor


@pytest.mark.parametrize(
    "made",
    [
        lambda on: Holding([1.0, 2.0 if on else 1.0, 1.0]),
        lambda on: Holding(torch.tensor([1.0, 2.0 if on else 1.0, 1.0])),
        lambda on: Holding(np.array([1.0, 2.0 if on else 1.0, 1.0])),
        lambda on: Holding({"scale": (1.0, 2.0 if on else 1.0, 1.0)}),
        lambda on: Holding(torch.tanh if on else torch.relu),
        lambda on: Holding(times(2.0 if on else 1.0)),
        lambda on: Encoding(nhead=4 if on else 2),
        lambda on: Encoding(nhead=2, norm_first=on),
    ],
    ids=["list", "tensor", "array", "dictionary", "function", "closure", "heads", "order"],
)
def test_a_checkpoint_of_another_network_that_prints_the_same_is_not_picked_up(tmp_path, made):
    assert repr(made(False)) == repr(made(True))
    assert weights_sha256(made(False).state_dict()) == weights_sha256(made(True).state_dict())
    seen = []
    for on in (False, True, False, True):
        tune(
            "madry",
            model=made(on),
            epochs=1,
            train=images(12),
            checkpoints=tmp_path,
            on_epoch=lambda record, on=on: seen.append(on),
        )
    assert seen == [False, True]  # and each is found again


def test_what_a_network_holds_is_told_in_the_same_words_wherever_it_lies():
    """Whatever lies in itself, has no order, or says its place in memory; where its weights were found is no part."""

    def told(order, place):
        model = network()
        model.some, model.ring, model.own, model.loading = set(order), [], object(), place
        model.ring.append(model.ring)
        model.mask = torch.eye(3).to_sparse()
        return computed_by(model)

    class Own:  # somebody's settings
        def __init__(self, order, part):
            self.order, self.part = set(order), [part]

    def with_own(order, weights):
        model, part = network(), nn.Linear(2, 2)
        nn.init.constant_(part.weight, weights)
        nn.init.zeros_(part.bias)
        model.own = Own(order, part)
        part.owner = [model]  # and round again
        model.later = lambda: said  # while this is found out, nothing is in the cell
        said = computed_by(model)
        return said

    assert with_own([0, 8], 1) == with_own([8, 0], 1)
    assert len({with_own([0, 8], 1), with_own([0, 7], 1), with_own([0, 8], 2)}) == 3
    assert [*{0, 8}] != [*{8, 0}]
    assert told([0, 8], "here") == told([8, 0], "there") != told([0, 7], "here")


@pytest.mark.parametrize("what", ["spectral", "tied", "alone"])
def test_layers_that_cannot_have_a_branch_are_left_out(what):
    """A weight that is computed, one that two layers share, and a network that is its head alone."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    if what == "spectral":
        nn.utils.parametrizations.spectral_norm(layers[1])
    if what == "tied":
        layers.append(nn.Conv2d(4, 4, 3, padding=1))
        layers[3].weight = layers[2].weight
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    if what == "alone":
        tuned = tune("vanilla", model=nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), epochs=1)
        assert tuned.history[0]["gradient_cosine"] is None
        return
    tuned = tune(model=model, epochs=1)
    assert tuned.branch.names == {"spectral": ["2"], "tied": ["1", "2"]}[what]


def test_a_checkpoint_of_other_code_is_not_picked_up(tmp_path):
    """The same class, weights and layers; its forward was mended."""

    def network(body: str):
        (tmp_path / "mine.py").write_text(f"from tests.oracle.steps import Small\nclass Mine(Small):\n{body}")
        linecache.clearcache()
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        sys.modules["mine"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        torch.manual_seed(0)
        return module.Mine(3)

    forward = "    def forward(self, x):\n        return super().forward(x{})\n"
    seen = []
    for body in (forward.format(""), forward.format(""), forward.format(" * 0.5")):
        tune(model=network(body), epochs=1, checkpoints=tmp_path, on_epoch=lambda record, body=body: seen.append(body))
    assert seen == [forward.format(""), forward.format(" * 0.5")]


def test_two_calls_never_train_the_same_key_at_once(tmp_path):
    def second(record):
        tune(epochs=1, seed=1, checkpoints=tmp_path)  # another key
        with pytest.raises(AtWork, match="another process is at work"):
            tune(epochs=1, checkpoints=tmp_path)

    tune(epochs=1, checkpoints=tmp_path, on_epoch=second)
    tune(epochs=1, checkpoints=tmp_path)


def test_no_batch_is_no_training():
    said = r"no batch to train on: 3 images in batches of 3 for 1 process\(es\), .* two images \(twins: four in all\)"
    with pytest.raises(ValueError, match=said):
        tune("twins", train=images(3), epochs=1, batch_size=3)


@pytest.mark.parametrize(
    ("method", "processes", "enough"), [("madry", 1, 2), ("twins", 1, 4), ("madry", 2, 4), ("twins", 2, 4)]
)
def test_what_is_left_over_is_a_batch_where_it_is_enough(monkeypatch, method, processes, enough):
    """Two images for each process, and four for twins."""
    monkeypatch.setattr(training.distributed, "process_count", lambda: processes)
    settings, too_few = Settings(THREAT, method, batch_size=16), enough - 1
    assert [len(batch) for batch in batches(settings, torch.arange(16 + enough))] == [16, enough]
    assert [len(batch) for batch in batches(settings, torch.arange(16 + too_few))] == [16]


def test_twins_leaves_out_a_last_batch_that_it_cannot_halve():
    records = []
    tune("twins", train=images(18), epochs=1, batch_size=16, on_epoch=records.append)
    assert np.isfinite(records[0]["loss"])


def test_weights_that_are_no_numbers_are_not_kept(tmp_path, monkeypatch):
    """The last step of an epoch is seen by no loss."""
    whole = training.train_epoch

    def spoilt(learner, epoch, *rest):
        found = whole(learner, epoch, *rest)
        if epoch == 3:
            learner.trained[0].data.fill_(torch.inf)
        return found

    monkeypatch.setattr(training, "train_epoch", spoilt)
    with pytest.raises(Diverged, match="no numbers after epoch 3; the last good state, after epoch 2, is in"):
        tune(epochs=4, checkpoints=tmp_path)


def test_a_checkpoint_of_another_run_is_not_picked_up(tmp_path):
    tune(epochs=2, checkpoints=tmp_path)
    x, y = images(48)
    x[0, 0, 0, 0] ^= 1
    other = network()
    nn.init.ones_(other.head.bias)
    for changes in ({"train": (x, y)}, {"model": other}, {"seed": 1}, {"epochs": 3}, {"val": images(12, 2)}):
        seen: list[int] = []
        tune(**{"epochs": 2, **changes}, checkpoints=tmp_path, on_epoch=lambda r, seen=seen: seen.append(r["epoch"]))
        assert seen[0] == 1, changes
    assert len(list(tmp_path.glob("autolora-*.pt"))) == 6


# --- data ------------------------------------------------------------------------------------------------------------


def test_images_in_a_mapped_file_give_the_same_bits_as_in_memory(tmp_path):
    x, y = images(48)
    np.save(tmp_path / "images.npy", x)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    resident = digest(tune(train=(mapped, y)))
    assert resident == digest(tune(train=(torch.from_numpy(x), y)))
    assert resident == digest(tune(train=(mapped, y), image_memory=0))


def test_floats_and_bytes_are_the_same_images():
    x, y = images(48)
    assert digest(tune(train=(x, y))) == digest(tune(train=(torch.from_numpy(x).float() / 255, y)))


@pytest.mark.filterwarnings("error:Converting a tensor")
def test_images_that_ask_for_a_gradient_are_images_with_checkpoints_too(tmp_path):
    x, y = images(48)
    floats = torch.from_numpy(x).float() / 255
    plain, asking = (
        tune(train=(f, y), epochs=1, checkpoints=tmp_path) for f in (floats, floats.clone().requires_grad_())
    )
    assert digest(plain) == digest(asking)
    assert len(list(tmp_path.glob("*.pt"))) == 1


def test_images_stored_larger_are_cropped_at_random_and_validated_as_given():
    tuned = tune(train=images(48, size=12), augmentation="auto", epochs=2)
    assert tuned.best["val_clean"] >= 0


def test_long_images_are_trained_on_whole_and_a_file_gives_the_same_bits_as_memory(tmp_path):
    x, y = images(48, size=12)
    shapes = np.array([[12, 20], [16, 12]] * 24)
    wide = [np.resize(image, (3, h, w)) for image, (h, w) in zip(x, shapes)]
    np.save(tmp_path / "images.npy", np.concatenate([image.reshape(-1) for image in wide]))
    mapped = rectangles(np.load(tmp_path / "images.npy", mmap_mode="r"), shapes)
    whole = digest(tune(train=(mapped, y), epochs=2))
    again = {"train": (mapped, y), "epochs": 2, "checkpoints": tmp_path, "image_memory": 0}

    def cut(record):
        raise Killed

    with pytest.raises(Killed):
        tune(**again, on_epoch=cut)
    assert digest(tune(**again)) == whole


def test_auto_takes_the_rule_for_small_data_and_the_paper_s_from_twenty_thousand_images():
    asked, pixels = Settings(THREAT, reference="auto"), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert tune(reference="auto", epochs=1).settings.reference == "best"
    assert decided(asked, (pixels, torch.zeros(19_999))).reference == "best"
    assert decided(asked, (pixels, torch.zeros(20_000))).reference == "paper"
    assert decided(Settings(THREAT, reference="released"), (pixels, torch.zeros(20_000))).reference == "released"
    ramp = Settings(THREAT, reference="auto", eps_schedule="ramp")  # which the paper's rule does not go with
    assert decided(ramp, (pixels, torch.zeros(20_000))).reference == "best"


def test_the_rule_for_small_data_cools_down_and_resumes_to_the_bit(tmp_path):
    whole = tune(reference="best", epochs=7)
    assert [record["epoch"] for record in whole.history if "cooling" in record["event"]] == [6]
    assert whole.history[6]["lr"] == pytest.approx(whole.history[0]["lr"] / 2)

    def cut(record):
        if record["epoch"] in (3, 6):
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            tune(reference="best", epochs=7, checkpoints=tmp_path, on_epoch=cut)
    again = tune(reference="best", epochs=7, checkpoints=tmp_path)
    assert digest(again) == digest(whole)
    assert len(again.history) == 7


def test_averaged_weights_are_the_ones_that_ship():
    last, averaged = tune(epochs=2), tune(epochs=2, average=0.99)
    assert digest(last) != digest(averaged)
    assert [r["loss"] for r in last.history] == [r["loss"] for r in averaged.history]  # training itself is the same


@pytest.mark.parametrize(("average", "precision"), [(None, "float32"), (0.9, "float32"), (0.9, "bfloat16")])
def test_validation_attacks_what_ships_and_the_network_itself_judges(average, precision):
    """Whatever copy the attack is made on."""
    tuned = tune(epochs=2, val=images(60, 1), average=average, precision=precision)
    x, y = images(60, 1)
    x, y = torch.from_numpy(x).float() / 255, torch.from_numpy(y)
    stands = tuned.model(pgd(tuned.model, x, y, THREAT, 10, random_start=False)).argmax(1) == y
    assert tuned.best["val_robust"] == pytest.approx(stands.float().mean().item(), abs=1 / 60 + 1e-6)


# --- switches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "has", "attack", "train"),
    [
        ("auto", True, torch.bfloat16, torch.float32),  # on a CPU the attack alone
        ("auto", False, torch.float32, torch.float32),
        ("float32", True, torch.float32, torch.float32),
        ("bfloat16", False, torch.bfloat16, torch.bfloat16),
    ],
)
def test_precision(monkeypatch, precision, has, attack, train):
    monkeypatch.setattr(speed, "has_bfloat16", lambda device: has)
    chosen = speed.speed(Settings(THREAT, precision=precision), torch.device("cpu"))
    assert (chosen.attack, chosen.train, chosen.compile) == (attack, train, False)


def test_weights_stay_float32_in_bfloat16_training():
    tuned = tune(precision="bfloat16", epochs=1)
    assert all(p.dtype == torch.float32 for p in tuned.model.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_is_the_same_training():
    plain, compiled = (tune(epochs=1, train=images(40), compile=switch) for switch in (False, True))
    assert compiled.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-3)
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(compiled.model.state_dict()[name], value, atol=1e-3), name


LAYOUTS = {"auto": torch.channels_last, True: torch.channels_last, False: torch.contiguous_format}


@pytest.mark.parametrize("method", ["autolora", "twins"])
@pytest.mark.parametrize("switch", LAYOUTS)
def test_all_weights_and_images_have_the_memory_format_asked_for(switch, method):
    """In training and attack, branch on and off, drawn and stored pixels; whatever format the network came in."""

    def seen(layer, inputs):
        met.append(layer)
        if layer.kernel_size != (1, 1):  # one pixel a filter: in both formats at once
            assert_laid_out(layer.weight)
        assert_laid_out(inputs[0])

    def assert_laid_out(t):
        assert [t.is_contiguous(memory_format=layout) for layout in (mine, other)] == [True, False]

    mine = LAYOUTS[switch]
    (other,) = {*LAYOUTS.values()} - {mine}
    settings = Settings(THREAT, method, "paper", batch_size=16, augmentation="crop_flip", channels_last=switch)
    train, val = (as_split(split, "some") for split in (images(48), images(12, 1)))
    net = learner.Learner(wide_enough().to(memory_format=other), train, val, settings, torch.device("cpu"))
    met: list[nn.Module] = []
    layers = [m for view in (net.model, net.folded.view) for m in view.modules() if isinstance(m, nn.Conv2d)]
    for layer in layers:
        layer.register_forward_pre_hook(seen)
    x, y = training.prepare(net, torch.from_numpy(train[0][:16]), torch.arange(16), 1, 0)
    training.one_step(net, x, net.attack(x, y), y)
    measuring.robust_hits(net)
    if net.branch is not None:
        measuring.natural_hits(net)
    assert {*met} == {*layers}


@pytest.mark.parametrize(
    ("stride", "channels", "layout"),
    [(2, 4, torch.contiguous_format), (1, 4, torch.channels_last), (2, 8, torch.channels_last)],
)
def test_where_torch_would_write_beyond_its_memory_the_usual_format(stride, channels, layout):
    """A strided 1x1 convolution of few channels: the process dies, or not, as its heap lies (without AVX-512)."""
    body = [nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels), nn.Conv2d(channels, 6, 1, stride=stride)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    train, val = (as_split(split, "some") for split in (images(48), images(12, 1)))
    net = learner.Learner(model, train, val, Settings(THREAT, "madry", "paper"), torch.device("cpu"))
    assert net.speed.layout == layout


def test_either_memory_format_is_the_same_training(tmp_path):
    last, first = (
        tune(epochs=2, model=wide_enough(), channels_last=switch, checkpoints=tmp_path) for switch in ("auto", False)
    )
    assert last.history[-1]["loss"] == pytest.approx(first.history[-1]["loss"], rel=1e-3)
    for name, value in first.model.state_dict().items():
        assert torch.allclose(last.model.state_dict()[name], value, atol=1e-3), name
    assert len(list(tmp_path.glob("*.pt"))) == 2  # rounding differs: neither goes on from where the other was


def test_a_checkpoint_of_other_labels_is_not_picked_up(tmp_path):
    x, y = images(48)
    corrected = y.copy()
    corrected[0] = 1
    for labels in (y, corrected):
        seen = []
        finetune(
            network(), (x, labels), images(12, 1), THREAT, method="madry", checkpoints=tmp_path,
            on_epoch=lambda record, seen=seen: seen.append(record["epoch"]), **QUICK | {"epochs": 1},
        )  # fmt: skip
        assert seen == [1]


def test_what_was_right_is_of_the_kept_state_and_not_of_a_later_one(monkeypatch):
    """Planted: 8 of 12 withstand after the first epoch, one after each later one."""
    planted = iter([8, 1, 1])
    monkeypatch.setattr("autolora.training.judgement.robust_hits", lambda learner: torch.arange(12) < next(planted))
    settings = QUICK | {"reference": "best", "attack": "pgd"}
    tuned = finetune(network(), images(48), images(12, 1), THREAT, method="vanilla", **settings)
    assert tuned.best_epoch == 1
    assert tuned.right == [True] * 8 + [False] * 4


@pytest.mark.parametrize("loss", [2e4, -2e4])
def test_a_loss_beyond_all_bounds_is_divergence_too(loss):
    check_losses(torch.tensor([[9e3, 1.0], [-9e3, 2e4]]), 3, None)  # of the total, no term of it
    with pytest.raises(Diverged, match=f"the loss is {loss:g} in epoch 3, step 2; no state was kept"):
        check_losses(torch.tensor([[1.0, 1.0], [loss, 1.0]]), 3, None)


@pytest.mark.parametrize(("n", "stays"), [(1, 2 / 11), (8, 9 / 18), (1000, 0.9)])
def test_an_average_starts_fast(n, stays):
    """min(decay, (1 + n) / (10 + n)) of the average stays; a counter is the newest."""
    averages, values = [torch.ones(2), torch.tensor(5)], [torch.zeros(2), torch.tensor(7)]
    following(0.9)(averages, values, torch.tensor(n))
    assert averages[0].tolist() == pytest.approx([stays] * 2)
    assert averages[1] == 7
