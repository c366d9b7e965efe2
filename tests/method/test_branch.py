"""The branch: shapes, start, scale, placement; where each term's gradient goes; what the merge leaves behind."""

import copy

import pytest
import timm
import torch
from torch import nn

from autolora.backbones.frozen import frozen
from autolora.threat import Threat
from autolora.training.branch import (
    Branch,
    add_branch,
    all_layers,
    factor_shapes,
    head_parameters,
    last_blocks,
    load_deltas,
    merge,
    natural_weights,
    save_branch,
)
from autolora.training.controllers import Scalars
from autolora.training.learner import Learner
from autolora.training.objectives import Losses, autolora, divergence
from autolora.training.settings import Settings
from tests.oracle import steps as oracle


def learner(method="autolora", **settings):
    torch.manual_seed(0)
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    settings = {"reference": "paper", "batch_size": 6, "precision": "float32", **settings}
    chosen = Settings(Threat("linf", "8/255"), method, **settings)
    made = Learner(oracle.Small(), (images, labels), (images, labels), chosen, torch.device("cpu"))
    made.model.train()
    if made.branch is not None:
        nn.init.normal_(made.branch.B[0], std=0.1)  # else A has no gradient yet
        for b in made.branch.B[1:]:
            nn.init.normal_(b, std=0.1)
    return made


def losses_of(made, weights):
    return autolora(made, made.images, made.attack(made.images, made.labels), made.labels, weights)


def gradients(made, weights):
    """Squared gradient norm of the total loss, by group of parameters."""
    x, y = made.images, made.labels
    made.weights = weights
    total = autolora(made, x, made.attack(x, y), y, weights).total
    total.backward()
    groups = {"extractor": [], "norms": [], "head": [], "A": list(made.branch.A), "B": list(made.branch.B)}
    for name, parameter in made.model.named_parameters():
        group = "head" if name in made.head else "norms" if "norm" in name else "extractor"
        groups[group].append(parameter)
    return {
        group: sum(0.0 if p.grad is None else float(p.grad.square().sum()) for p in parameters)
        for group, parameters in groups.items()
    }


@pytest.mark.parametrize(
    ("layer", "a", "b"),
    [
        (nn.Conv2d(16, 32, 3), (24, 48), (96, 24)),
        (nn.Conv2d(16, 32, 1), (8, 16), (32, 8)),
        (nn.Conv2d(16, 32, (5, 3)), (40, 48), (160, 40)),
        (nn.Conv2d(16, 32, (3, 5), groups=4), (24, 80), (24, 24)),
        (nn.Conv2d(16, 16, 7, groups=16), (56, 112), (7, 56)),
        (nn.Linear(20, 30), (8, 20), (30, 8)),
    ],
)
def test_shapes_of_the_factors(layer, a, b):
    assert factor_shapes(layer) == (a, b)
    branch = Branch([("layer", layer)])
    assert branch.deltas()["layer.weight"].shape == layer.weight.shape


def test_a_is_standard_normal_and_b_is_zero():
    branch = Branch([("layer", nn.Conv2d(64, 64, 3))], generator=torch.Generator().manual_seed(0))
    assert abs(branch.A[0].mean()) < 0.05
    assert abs(branch.A[0].std() - 1) < 0.05
    assert not branch.B[0].any()


def test_the_delta_is_a_plain_reshape_over_the_rank():
    layer = nn.Conv2d(3, 5, (2, 3))
    branch = Branch([("layer", layer)], rank=4)
    nn.init.normal_(branch.B[0])
    product = branch.B[0] @ branch.A[0]  # [5*2, 3*3]
    flat = branch.deltas()["layer.weight"].reshape(-1)
    for i in (0, 7, 33, 89):  # row-major, as loralib's view
        assert flat[i].item() == pytest.approx(product[i // 9, i % 9].item() / 4)


@pytest.mark.parametrize(("arch", "paper", "released"), [("resnet18", 19, 8), ("resnet50", 52, 12)])
def test_placement(arch, paper, released):
    model = timm.create_model(arch, num_classes=4)
    assert len(all_layers(model)) == paper
    assert len(last_blocks(model)) == released
    blocks = {name.rpartition(".")[0] for name, _ in last_blocks(model)}
    assert blocks == {f"layer{i + 1}.{n - 1}" for i, n in enumerate([2] * 4 if arch == "resnet18" else [3, 4, 6, 3])}


@pytest.mark.parametrize(
    "arch", ["convnext_atto", "efficientnet_b0", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_released_placement_takes_one_block_a_stage_in_any_network(arch):
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=4)
    chosen, every = last_blocks(model), all_layers(model)
    assert 0 < len(chosen) < len(every)


def test_a_network_without_layers_to_branch_is_refused():
    with pytest.raises(ValueError, match="nothing to branch"):
        Branch([])


def test_natural_cross_entropy_reaches_the_branch_and_the_head_alone():
    reached = gradients(learner(), Scalars(1.0, 0.0))
    assert reached["extractor"] == 0
    assert reached["norms"] == 0
    assert min(reached["A"], reached["B"], reached["head"]) > 0


def test_adversarial_cross_entropy_reaches_the_network_and_not_the_branch():
    reached = gradients(learner(), Scalars(0.0, 0.0))
    assert reached["A"] == 0
    assert reached["B"] == 0
    assert min(reached["extractor"], reached["norms"], reached["head"]) > 0


def test_the_distillation_reaches_both_sides():
    made = learner()
    losses = losses_of(made, Scalars(0.5, 1.0))
    losses.kl.backward()
    assert all(p.grad is not None and p.grad.any() for p in [*made.branch.A, *made.branch.B])  # not detached
    assert all(p.grad is not None and p.grad.any() for p in made.model.parameters() if p.ndim > 1)


def test_direction_of_the_divergence():
    """KL(p || q) of p = (1/2, 1/2) and q = (1/4, 3/4), worked by hand; the other way round it is 0.1308."""
    made = learner()
    made.global_batch = 1
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert divergence(made, p, q).item() == pytest.approx(0.1438, abs=1e-4)


def test_batch_norm_moves_with_the_natural_pass_first():
    made, seen = learner(), []
    made.model.norm1.register_forward_pre_hook(lambda m, args: seen.append((m.training, args[0].requires_grad)))
    before = made.model.norm1.num_batches_tracked.clone()
    natural_first = []
    call = made.call
    made.call = lambda weights, x: natural_first.append(bool(weights)) or call(weights, x)
    losses_of(made, Scalars(0.5, 1.0))
    assert natural_first == [True, False]
    assert made.model.norm1.num_batches_tracked == before + 2  # not in the attack, which runs in eval


def test_merge_gives_the_view_that_was_trained():
    made = learner()
    made.model.eval()
    x = made.images
    with torch.no_grad(), frozen(made.model):
        weights = natural_weights(made.model, made.branch, made.head)
        natural = torch.func.functional_call(made.model, weights, (x,))
        plain = made.model(x)
    deltas = made.branch.deltas()
    assert torch.equal(add_branch(made.model, deltas, 0.0)(x), plain)
    assert torch.allclose(add_branch(made.model, deltas, 1.0)(x), natural, atol=1e-6)
    half = add_branch(made.model, deltas, 0.5)
    assert torch.allclose(half.conv1.weight, made.model.conv1.weight + deltas["conv1.weight"] / 2, atol=1e-7)
    assert not any(p.requires_grad for p in half.parameters())
    assert type(half) is oracle.Small
    assert not half.training


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_merge_refuses_an_alpha_outside_the_dial(alpha):
    with pytest.raises(ValueError, match="from 0 to 1"):
        merge(None, alpha)


def test_a_branch_of_another_network_is_refused():
    with pytest.raises(ValueError, match=r"another network.*elsewhere\.weight"):
        add_branch(oracle.Small(), {"elsewhere.weight": torch.zeros(1)}, 0.5)


def test_a_saved_branch_comes_back(tmp_path):
    made = learner()
    save_branch(made.branch, tmp_path / "branch.safetensors")
    deltas = load_deltas(tmp_path / "branch.safetensors")
    assert all(torch.equal(deltas[k], v) for k, v in made.branch.deltas().items())
    save_branch(None, tmp_path / "none.safetensors")
    assert load_deltas(tmp_path / "none.safetensors") == {}


def test_head_parameters():
    assert head_parameters(oracle.Small()) == {"head.weight", "head.bias"}


def test_losses_are_means_over_the_batch():
    made = learner()
    losses = losses_of(made, Scalars(0.5, 1.0))
    assert isinstance(losses, Losses)
    total = 0.5 * losses.natural + 0.5 * losses.adversarial + losses.kl
    assert losses.total.item() == pytest.approx(total.item())
    twice = copy.deepcopy(made.model)
    assert twice(made.images).shape == (6, 3)
