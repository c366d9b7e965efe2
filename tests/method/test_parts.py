"""Training a part of the network: blocks that are chosen by short runs, and weights that are prominent."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from autolora.common.files import weights_sha256
from autolora.training import loop, prominence, subtuning
from autolora.training.learner import Learner
from autolora.training.loop import finetune, one_step
from autolora.training.prominence import CHANCE, Revision, stays
from autolora.training.settings import Settings
from tests.method.small import QUICK, THREAT, images, network

BLOCKS = ["conv1", "conv2", "short", "mix"]  # of the small network: layers that lie in no block are one each


def tune(method="vanilla", model=None, **changes):
    settings = {**QUICK, "method": method, "reference": "best", **changes}
    return finetune(network() if model is None else model, images(48), images(12, 1), THREAT, **settings)


def digest(tuned):
    return weights_sha256(tuned.model.state_dict())


# --- blocks: the choice ----------------------------------------------------------------------------------------------


def hits(count, of=40):
    return [1] * count + [0] * (of - count)


def table(scores):
    """What was asked, and a choice that answers by the blocks' names."""
    asked = []

    def tried(blocks):
        asked.append(blocks)
        return hits(scores.get("".join(blocks), 0))

    return asked, tried


def test_the_planted_order_is_found_and_ties_keep_the_earlier_block():
    scores = {"": 5, "a": 6, "b": 9, "c": 9, "ba": 20, "bc": 15, "bac": 30, "bad": 29, "bacd": 40}
    asked, tried = table(scores)
    assert subtuning.choose("abcd", tried) == ("b", "a", "c")
    rounds = [("",), "abcd", ("ba", "bc", "bd"), ("bac", "bad")]
    assert ["".join(blocks) for blocks in asked] == [name for names in rounds for name in names]
    assert len(asked) == subtuning.short_runs(4)  # never more: three blocks are the most


def test_the_first_block_must_be_better_and_a_further_one_surely():
    assert subtuning.choose("ab", table({"": 9, "a": 9, "b": 8})[1]) == ()
    assert subtuning.choose("ab", table({"": 8, "b": 9, "ba": 11})[1]) == ("b",)  # two images more: z = 1.4
    assert subtuning.choose("ab", table({"": 8, "b": 9, "ba": 12})[1]) == ("b", "a")  # three more: z = 1.7


@pytest.mark.parametrize(("blocks", "runs"), [(1, 2), (2, 4), (3, 7), (8, 22)])
def test_how_many_short_runs_there_are_at_most(blocks, runs):
    assert subtuning.short_runs(blocks) == runs


def test_blocks_of_networks():
    stages = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 3), "layer": nn.Sequential(*(nn.Sequential() for _ in range(2)))})
    for stage in stages["layer"]:
        stage.extend([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)])
    stages["head"] = nn.Linear(4, 3)
    assert subtuning.blocks_of(network()) == BLOCKS
    assert subtuning.blocks_of(stages) == ["layer.0.0", "layer.0.1", "layer.1.0", "layer.1.1"]
    with pytest.raises(ValueError, match="trains is 'blocks': the network has no convolution or linear layer between"):
        subtuning.blocks_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 3)))


# --- blocks: what is trained -----------------------------------------------------------------------------------------


def test_all_but_the_blocks_and_the_head_stays_to_the_bit():
    before, after = network().state_dict(), tune(trains="blocks", blocks=["conv2", "mix"]).model.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"conv2", "mix", "head"}  # no norm, no running statistic


def test_no_block_is_the_head_alone():
    assert digest(tune(trains="blocks", blocks=())) == digest(tune(trains="head"))


def test_blocks_are_chosen_by_short_runs_and_then_trained(monkeypatch):
    runs = []
    run = loop.run
    monkeypatch.setattr(
        loop, "run", lambda m, t, v, settings, way, **k: runs.append(settings) or run(m, t, v, settings, way, **k)
    )
    tuned = tune(trains="blocks", epochs=6)
    *short, whole = runs
    assert {settings.epochs for settings in short} == {1}
    assert short[0].blocks == ()
    assert [settings.blocks for settings in short[1:5]] == [(name,) for name in BLOCKS]
    assert whole.epochs == 6
    assert [tried["blocks"] for tried in tuned.tries] == [list(settings.blocks) for settings in short]
    first = max(tuned.tries[1:5], key=lambda tried: tried["right"])
    assert tuned.settings.blocks[:1] == (tuple(first["blocks"]) if first["right"] > tuned.tries[0]["right"] else ())
    assert digest(tuned) == digest(tune(trains="blocks", epochs=6, blocks=tuned.settings.blocks))


def test_what_was_right_is_what_the_best_state_was_chosen_by():
    for method in ("vanilla", "natural"):
        tuned = tune(method)
        score = tuned.best["val_robust" if method == "vanilla" else "val_clean"]
        assert sum(tuned.right) / 12 == score


def test_a_choice_that_is_killed_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    whole = tune(trains="blocks", checkpoints=tmp_path / "whole")
    left = {path.suffix for path in (tmp_path / "whole").iterdir()}
    assert len(list((tmp_path / "whole").glob("*.pt"))) == 1, left  # of the short runs only what they found
    run, made = loop.run, []

    def killed(model, train, val, settings, way, **more):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(settings.blocks)
        return run(model, train, val, settings, way, **more)

    monkeypatch.setattr(loop, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(trains="blocks", checkpoints=tmp_path / "killed")
    monkeypatch.setattr(loop, "run", lambda *a, **k: made.append(a[3].blocks) or run(*a, **k))
    again = tune(trains="blocks", checkpoints=tmp_path / "killed")
    assert made == [tuple(tried["blocks"]) for tried in whole.tries] + [whole.settings.blocks]  # none of them twice
    assert again.tries == whole.tries
    assert digest(again) == digest(whole)
    (found,) = (tmp_path / "killed").glob("*.blocks.json")
    assert json.loads(found.read_text())[0][0] == ""


# --- prominent weights -----------------------------------------------------------------------------------------------


def learner(method="vanilla", **changes):
    torch.manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    settings = Settings(THREAT, method, "best", batch_size=6, precision="float32", trains="prominent", **changes)
    made = Learner(network().double(), (x, y), (x, y), settings, torch.device("cpu"))
    made.train()
    made.begin(0, 6)
    return made, x, y


def test_the_share_that_stays_is_the_percentile_and_one_entry_always_moves(monkeypatch):
    prominent = torch.rand(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.3, 0.5, 1.0):
        monkeypatch.setattr(prominence, "SHARE", share)
        bound = np.quantile(prominent.numpy(), share, method="nearest")
        assert torch.equal(stays(prominent), prominent < bound)
        assert abs(int(stays(prominent).sum()) - share * 77) <= 1
    assert int(stays(prominent).sum()) == 76


def test_of_equal_entries_as_many_stay_as_of_others():
    """40 weights of units that are dead have no gradient at all: 30 of them stay."""
    prominent = torch.arange(100.0).clamp_min(40) - 40
    mask = stays(prominent.view(4, 25))
    assert mask.shape == (4, 25)
    assert mask.flatten().nonzero().flatten().tolist() == list(range(30))


def test_a_step_moves_the_prominent_entries_alone():
    made, x, y = learner()
    attacked = made.attack(x, y)
    before = {name: weight.clone() for name, weight in made.model.named_parameters()}
    oracle = {name: weight.clone().requires_grad_() for name, weight in before.items()}
    model = network().double()
    ranks = [0.0] * len(oracle)
    for share, images_of_a_pass in ((0.1, x), (0.9, attacked)):
        z = torch.func.functional_call(model.train(), oracle, (images_of_a_pass,))
        slopes = torch.autograd.grad(F.cross_entropy(z, y), list(oracle.values()))
        ranks = [rank + share * slope.abs() for rank, slope in zip(ranks, slopes)]
    one_step(made, x, attacked, y)
    after = {name: weight.clone() for name, weight in made.model.named_parameters()}
    one_step(made, x, attacked, y)  # now momentum would move each entry
    layers = {"stem.weight", "conv1.weight", "conv2.weight", "short.weight", "mix.weight"}
    for (name, old), rank in zip(before.items(), ranks):
        still = after[name] == old
        if name in layers:
            bound = np.quantile(rank.numpy(), 0.3, method="nearest")
            assert torch.equal(still, rank < bound), name
        else:
            assert not still.any(), name
    for name in layers:
        assert 0 < int((made.model.get_parameter(name) == after[name]).sum()) < after[name].numel()


def test_without_mask_and_revision_it_is_the_plain_method(monkeypatch):
    monkeypatch.setattr(prominence, "SHARE", 0.0)
    monkeypatch.setattr("autolora.training.learner.WEIGHT", 0.0)
    plain, changed = tune(), tune(trains="prominent")
    assert digest(plain) == digest(changed)  # buffers too: the revision's passes move none
    assert [r["loss"] for r in plain.history] == [r["loss"] for r in changed.history]
    assert digest(plain) != digest(tune(trains="all", smoothing=0.1))


def test_the_distance_from_the_revision_is_the_divergence_of_both_passes():
    made, x, y = learner()
    attacked = made.attack(x, y)
    losses = made.losses(x, attacked, y)
    made.passes = []
    plain = made.objective(made, x, attacked, y, made.weights)
    assert losses.total.item() == pytest.approx(plain.total.item(), abs=1e-12)  # as it starts, there is none
    for i, _ in enumerate(made.revision.names):
        made.revision.get_buffer(str(i)).mul_(1.1)
    losses = made.losses(x, attacked, y)
    model, expected = network().double().train(), 0.0
    for points in (x, attacked):
        p = torch.func.functional_call(model, made.revision.weights(), (points,)).softmax(1)
        q = torch.func.functional_call(model, dict(made.model.named_parameters()), (points,)).softmax(1)
        expected += (p * (p / q).log()).sum(1).mean().item()
    assert losses.total.item() - plain.total.item() == pytest.approx(expected, rel=1e-9)
    slopes = torch.autograd.grad(losses.total, list(made.model.parameters()))
    assert all(slope.abs().sum() > 0 for slope in slopes)


def test_the_revision_is_the_mean_of_what_it_saw_after_a_fifth_of_the_steps():
    model = network().double()
    revision, seen, steps = Revision(model), [], 400
    assert all(torch.equal(mean, model.get_parameter(name)) for name, mean in revision.weights().items())
    for step in range(steps):
        model.mix.weight.data.fill_(float(step))
        before = int(revision.count)
        revision.follow(model, torch.Generator().manual_seed(step))
        if int(revision.count) > before:
            seen.append(step)
            assert revision.weights()["mix.weight"].mean().item() == pytest.approx(np.mean(seen))
    assert 0.7 * CHANCE < len(seen) / steps < 1.3 * CHANCE


def test_the_revision_follows_by_a_thousandth_at_least():
    model = network().double()
    revision = Revision(model)
    revision.count.fill_(10**6)
    before = model.mix.weight.detach().clone()
    model.mix.weight.data.add_(1)
    step = 0
    while int(revision.count) == 10**6:
        revision.follow(model, torch.Generator().manual_seed(step))
        step += 1
    assert torch.allclose(revision.weights()["mix.weight"], before + 0.001, atol=1e-12)


def test_a_prominent_run_that_is_killed_ends_as_one_that_was_not(tmp_path):
    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(trains="prominent", epochs=4, checkpoints=tmp_path, on_epoch=stop)
    resumed, whole = tune(trains="prominent", epochs=4, checkpoints=tmp_path), tune(trains="prominent", epochs=4)
    assert digest(resumed) == digest(whole)
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in whole.history]
    assert set(whole.model.state_dict()) == set(network().state_dict())


def test_a_network_whose_weights_the_caller_has_frozen_has_prominent_ones():
    """As one that was tuned before, which comes back frozen."""
    frozen = network().requires_grad_(False)
    assert digest(tune(model=frozen, trains="prominent", epochs=1)) == digest(tune(trains="prominent", epochs=1))


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "autolora", "trains": "blocks"}, "trains is 'blocks': method autolora says itself what is trained"),
        ({"method": "natural", "trains": "prominent"}, "trains is 'prominent': method natural has no attack"),
        (
            {"method": "madry", "trains": "prominent", "augmentation": "interpolate"},
            "trains is .*: augmentation interp",
        ),
        ({"blocks": ("mix",)}, "blocks is .*: trains is all: set it to blocks"),
        ({"trains": "blocks", "blocks": ("mixed",)}, "blocks is 'mixed': the network has conv1, conv2, short, mix"),
        ({"trains": "lora", "model": nn.Sequential(nn.Flatten(), nn.Linear(192, 3))}, "trains is 'lora': the network"),
        ({"trains": "blocks", "model": nn.Sequential(nn.Flatten(), nn.Linear(192, 3))}, "trains is 'blocks': the netw"),
    ],
)
def test_refused_before_the_first_step(changes, message):
    with pytest.raises(ValueError, match=message):
        tune(**changes)


def normed(*which):
    """A network in which the weights of some layers are computed."""
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
    for at in which:
        weight_norm(layers[at])
    return nn.Sequential(*layers)


@pytest.mark.parametrize("axis", [{"weight_attack": 0.01}, {"trains": "prominent"}], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_layers_whose_weight_is_computed_are_named_and_not_left_out(axis, frozen):
    ((key, value),) = axis.items()
    model = normed(1, 4).requires_grad_(not frozen)
    with pytest.raises(ValueError, match=f"{key} is {value!r}: the weight of layer '1' is computed from others: make"):
        tune(model=model, **axis)
    remove_parametrizations(model[1], "weight")
    if key == "trains":  # of the head no weight stays
        assert tune(model=model, epochs=1, **axis).history
    else:
        with pytest.raises(ValueError, match="the weight of layer '4' is computed"):
            tune(model=model, **axis)
    remove_parametrizations(model[4], "weight")
    assert tune(model=model, epochs=1, **axis).history
