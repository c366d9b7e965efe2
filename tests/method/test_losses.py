"""The further losses, smoothing and the weight attack, each against its formula written out or a known special case."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autolora.training import objectives
from autolora.training.controllers import Scalars
from autolora.training.learner import Learner
from autolora.training.loop import one_step
from autolora.training.settings import Settings
from autolora.training.weight_attack import worst_direction
from tests.method.small import THREAT, Tied, network

WEIGHTS = Scalars(0.5, 3.0)


class Given:
    """A network whose logits are given: what an objective makes of them is all there is."""

    smoothing = 0.0

    def __init__(self, z, z_adv):
        self.outputs = {"x": z, "x~": z_adv}

    def plain(self, x):
        return self.outputs[x]

    def mean(self, values):
        return values.mean()


@pytest.fixture
def given():
    draw = torch.Generator().manual_seed(0)
    z, z_adv = (torch.randn(5, 4, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(2))
    return Given(z, z_adv), z, z_adv, torch.tensor([0, 1, 2, 3, 0])


def total(objective, net, y):
    return objective(net, "x", "x~", y, WEIGHTS).total


def kl(z, z_adv):
    p, q = torch.softmax(z, 1), torch.softmax(z_adv, 1)
    return (p * (p.log() - q.log())).sum(1)


def test_madry_is_the_attacked_images_alone(given):
    net, z, z_adv, y = given
    loss = total(objectives.madry, net, y)
    assert torch.allclose(loss, -torch.log_softmax(z_adv, 1)[range(5), y].mean())
    assert torch.autograd.grad(loss, z, allow_unused=True) == (None,)


def test_mart(given):
    net, z, z_adv, y = given
    p, p_adv = torch.softmax(z, 1)[range(5), y], torch.softmax(z_adv, 1)
    wrong = torch.stack([torch.cat([row[:t], row[t + 1 :]]).max() for row, t in zip(p_adv, y)])
    boosted = -p_adv[range(5), y].log() - torch.log(1.0001 - wrong + 1e-12)
    assert torch.allclose(total(objectives.mart, net, y), (boosted + 5 * kl(z, z_adv) * (1.0000001 - p)).mean())


def test_mart_hardly_weighs_an_image_that_is_sure():
    z = torch.tensor([[100.0, 0.0]])
    net = Given(z, torch.tensor([[0.0, 1.0]]))
    assert objectives.mart(net, "x", "x~", torch.tensor([0]), WEIGHTS).kl < 2e-5  # a KL of 100 times 1e-7


def test_arow(given):
    net, z, z_adv, y = given
    p_adv = torch.softmax(z_adv, 1)[range(5), y]
    expected = -torch.log_softmax(z, 1)[range(5), y].mean() + 7 * (kl(z, z_adv) * (1 - p_adv)).mean()
    loss = total(objectives.arow, net, y)
    assert torch.allclose(loss, expected)
    detached = -torch.log_softmax(z, 1)[range(5), y].mean() + 7 * (kl(z, z_adv) * (1 - p_adv.detach())).mean()
    mine, others = (torch.autograd.grad(of, z_adv, retain_graph=True)[0] for of in (loss, detached))
    assert not torch.allclose(mine, others)  # the weight is not a constant


def test_arow_with_equal_weights_is_trades(given, monkeypatch):
    net, _, _, y = given
    monkeypatch.setattr(objectives, "of_label", lambda z, y: z.new_zeros(len(y)))
    monkeypatch.setattr(objectives, "AROW_LAMBDA", objectives.BETA)
    assert torch.allclose(total(objectives.arow, net, y), total(objectives.vanilla, net, y))


def test_smoothed_labels(given):
    net, _z, z_adv, y = given
    net.smoothing = 0.2
    target = F.one_hot(y, 4) * 0.8 + 0.2 / 4
    assert torch.allclose(total(objectives.madry, net, y), -(target * torch.log_softmax(z_adv, 1)).sum(1).mean())
    net.smoothing = 1.0
    assert torch.allclose(total(objectives.madry, net, y), -torch.log_softmax(z_adv, 1).mean())


# --- the weight attack -----------------------------------------------------------------------------------------------


def learner(method="vanilla", model=None, **changes):
    torch.manual_seed(0)
    images, labels = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    settings = Settings(THREAT, method, "best", batch_size=6, precision="float32", **changes)
    model = (model or network()).double()
    made = Learner(model, (images, labels), (images, labels), settings, torch.device("cpu"))
    made.weights, made.perturbs = WEIGHTS, changes.get("weight_attack") is not None
    made.model.train()
    return made, images, labels


def tracking():
    """Instance norm with running statistics, beside batch norm."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.ReLU()]
    body += [nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(8, 3))


def after_a_step(**changes):
    made, x, y = learner(**changes)
    made.begin(1, len(y))
    one_step(made, x, made.attack(x, y), y)
    return made


@pytest.mark.parametrize("method", ["autolora", "vanilla"])
@pytest.mark.parametrize("made", [network, tracking])
def test_a_gamma_of_zero_is_the_plain_method_to_the_bit(method, made):
    plain, perturbed = (after_a_step(method=method, model=made(), weight_attack=gamma) for gamma in (None, 0.0))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, perturbed.model.state_dict()[name]), name


def test_the_step_is_the_gradient_at_weights_moved_by_gamma_times_their_norm():
    made, x, y = learner(weight_attack=0.01)
    made.begin(1, len(y))
    attacked = made.attack(x, y)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    buffers = {n: b.clone() for n, b in made.model.named_buffers()}
    made.perturb_weights(x, attacked, y)
    assert all(torch.equal(b, buffers[n]) for n, b in made.model.named_buffers())  # the proxy moves no statistics
    layers = {n for n, p in before.items() if n.endswith("weight") and p.dim() > 1}
    assert made.shift.keys() == layers
    assert "head.weight" in layers
    for name, v in made.shift.items():
        assert (v.norm() / before[name].norm()).item() == pytest.approx(0.01)

    def loss(scale):
        moved = {n: p + scale * made.shift.get(n, 0) for n, p in before.items()}
        moved |= {n: b.clone() for n, b in buffers.items()}
        z, z_adv = (torch.func.functional_call(made.model, moved, (images,)) for images in (x, attacked))
        return F.cross_entropy(z, y) + 6 * kl(z, z_adv).mean()

    assert loss(0.01) > loss(0.0)  # uphill
    one_step(made, x, attacked, y)
    moved = {n: (p + made.shift.get(n, 0)).requires_grad_(True) for n, p in before.items()}
    fresh = {n: b.clone() for n, b in buffers.items()}
    z, z_adv = (torch.func.functional_call(made.model, moved | fresh, (images,)) for images in (x, attacked))
    slopes = torch.autograd.grad(F.cross_entropy(z, y) + 6 * kl(z, z_adv).mean(), list(moved.values()))
    rate, decay = made.controller.rate, made.method.decay
    for (name, old), slope in zip(before.items(), slopes):
        assert torch.allclose(made.model.get_parameter(name), old - rate * (slope + decay * old), atol=1e-12), name


def test_the_weight_attack_leaves_autolora_s_branch_and_natural_pass_where_they_are():
    """v is of the plain network: A and B are no part of it, and the branch's pass sees theta1 as it is."""
    made, x, y = learner("autolora", weight_attack=0.01)
    made.begin(1, len(y))
    attacked = made.attack(x, y)
    made.perturb_weights(x, attacked, y)
    assert made.shift
    assert made.shift.keys() <= dict(made.model.named_parameters()).keys()
    rest = copy.deepcopy(made)
    with torch.no_grad():
        moved = rest.plain(attacked)
        rest.shift = {}
        still = rest.plain(attacked)
        assert not torch.allclose(moved, still)
        with_shift, without = made.natural(x), rest.natural(x)
        assert torch.equal(with_shift, without)


def test_the_weight_attack_moves_both_halves_of_twins():
    """What is frozen are the statistics; the weights are one network's, and so is the v that is added to them."""
    made, x, y = learner("twins", weight_attack=0.01)
    made.begin(1, len(y))
    attacked = made.attack(x, y)
    made.perturb_weights(x, attacked, y)
    norms = made.norms.weights()
    assert not made.shift.keys() & norms.keys()
    moved = {n: p + made.shift.get(n, 0) for n, p in made.model.named_parameters()} | norms
    at_rest = copy.deepcopy(made.model).eval()
    with torch.no_grad():
        assert torch.equal(made.frozen(attacked), torch.func.functional_call(at_rest, moved, (attacked,)))
        made.shift = {}
        assert torch.equal(made.frozen(attacked), torch.func.functional_call(at_rest, norms, (attacked,)))


def test_a_step_without_rate_and_decay_leaves_the_attacked_weights_to_the_bit():
    made, x, y = learner(weight_attack=0.01, rate=1e-9, decay=0.0)
    made.optimiser.param_groups[0]["lr"] = 0.0
    made.begin(1, len(y))
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    attacked = made.attack(x, y)
    made.perturb_weights(x, attacked, y)
    assert made.shift
    one_step(made, x, attacked, y)
    assert all(torch.equal(p, before[n]) for n, p in made.model.named_parameters())


def test_v_does_not_depend_on_the_loss_scale():
    made, x, y = learner(weight_attack=0.01)
    layers = {"head.weight": made.model.head.weight}
    small, large = (worst_direction(k * F.cross_entropy(made.model(x), y), layers, 0.01) for k in (1, 10))
    assert torch.allclose(small["head.weight"], large["head.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_without_a_slope_is_not_moved(dtype):
    weights = {name: torch.ones(3, 2, dtype=dtype, requires_grad=True) for name in ("flat", "steep")}
    v = worst_direction((0 * weights["flat"] + 2 * weights["steep"]).sum(), weights, 0.01)
    assert not v["flat"].any()
    assert v["steep"].norm().item() == pytest.approx(0.01 * 6**0.5, rel=1e-2)


def test_a_weight_that_layers_share_is_moved_once_and_in_all_of_them():
    made, x, y = learner(weight_attack=0.05, model=Tied())
    for seed in range(2):
        made.begin(seed, len(y))
        one_step(made, x, made.attack(x, y), y)
    made.perturb_weights(x, made.attack(x, y), y)
    assert made.shift.keys() == {"own", "stem.weight", "a.weight", "head.weight"}
    moved = copy.deepcopy(made.model)
    for name, v in made.shift.items():
        moved.get_parameter(name).data += v
    assert moved.b.weight is moved.a.weight
    assert torch.allclose(made.plain(x), moved(x), rtol=1e-12)
