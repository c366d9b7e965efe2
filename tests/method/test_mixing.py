"""CutMix and interpolation: what is mixed with what, whole steps against the oracle, resume, other networks."""

import pytest
import torch
import torch.nn.functional as F

from autolora.common.files import weights_sha256
from autolora.data.mixing import Pairs, box, cutmix, draw_pairs, interpolated
from autolora.threat import Threat
from autolora.training import loop
from autolora.training.controllers import Scalars
from autolora.training.learner import Learner
from autolora.training.loop import finetune, one_step, prepare
from autolora.training.objectives import METHODS
from autolora.training.settings import Settings
from tests.method.small import QUICK, THREAT, images, network
from tests.oracle import steps as oracle

MIXED = ("cutmix", "interpolate")
METHOD = {"cutmix": "vanilla", "interpolate": "madry"}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def halves(n, side=(12, 8)):
    """Images and partners that cannot be confused, and labels of two classes: 0 for one's own."""
    labels = torch.eye(2, dtype=torch.float64)
    return torch.zeros(n, 3, *side), labels[:1].repeat(n, 1), torch.ones(n, 3, *side), labels[1:].repeat(n, 1)


# --- what is mixed ---------------------------------------------------------------------------------------------------


def test_a_label_of_cutmix_is_the_share_of_pixels():
    shares = []
    for seed in range(200):
        mixed, labels = cutmix(*halves(2), draw_pairs(2, seeded(seed)))
        assert torch.allclose(labels[:, 1], mixed.double().mean((1, 2, 3)), atol=1e-7)
        assert torch.allclose(labels.sum(1), torch.ones(2, dtype=torch.float64))
        shares.append(labels[0, 1].item())
    assert min(shares) == 0
    assert max(shares) > 0.5


def test_the_box_has_the_published_sides_and_ends_at_the_border():
    rows, columns = box(Pairs(torch.arange(2), 0.75, (0.5, 0.5)), 32, 32)
    assert (rows, columns) == (slice(8, 24), slice(8, 24))  # sqrt(1 - 0.75) of each side
    rows, columns = box(Pairs(torch.arange(2), 0.75, (0.0, 0.999)), 32, 32)
    assert (rows, columns) == (slice(0, 8), slice(23, 32))


def test_interpolation_is_a_line_between_the_two():
    for seed in range(20):
        pairs = draw_pairs(4, seeded(seed))
        mixed, labels = interpolated(*halves(4), pairs)
        assert torch.allclose(mixed, torch.full_like(mixed, 1 - pairs.stays))
        assert torch.allclose(labels[:, 0], torch.full((4,), pairs.stays, dtype=torch.float64))
        assert torch.allclose(labels.sum(1), torch.ones(4, dtype=torch.float64))


def test_partners_are_a_permutation_and_shares_are_uniform():
    drawn = [draw_pairs(5, seeded(seed)) for seed in range(400)]
    assert all(sorted(pairs.partners.tolist()) == list(range(5)) for pairs in drawn)
    shares = torch.tensor([pairs.stays for pairs in drawn])
    assert (torch.histc(shares, 4, 0, 1) / 400 - 0.25).abs().max() < 0.07


# --- whole steps -----------------------------------------------------------------------------------------------------


def start(augmentation, **changes):
    torch.manual_seed(0)
    model = oracle.Small().double()
    for _ in range(3):
        model(torch.rand(8, 3, 8, 8, dtype=torch.float64))
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    changes = {"batch_size": 6, "precision": "float32", "attack": "pgd", "rate": 0.01} | changes
    changes["augmentation"] = augmentation
    settings = Settings(THREAT, METHOD[augmentation], "best", **changes)
    learner = Learner(model, (x, y), (x, y), settings, torch.device("cpu"))
    learner.weights = Scalars(0.5, 3.0)
    learner.model.train()
    w = {k: v.detach().clone().requires_grad_(True) for k, v in model.named_parameters()}
    return learner, w, {k: v.clone() for k, v in model.named_buffers() if "batches" not in k}, x, y


def noise(x, seed):
    return (torch.rand(x.shape, dtype=x.dtype, generator=seeded(seed)) * 2 - 1) * THREAT.eps


def test_a_step_on_cutmix_attacks_and_learns_the_mixed_label():
    learner, w, stats, images_, hard = start("cutmix")
    learner.begin(5, 6)
    x, y = learner.cutmix(images_, hard)
    pairs = learner.pairs[0]
    rows, columns = box(pairs, 8, 8)
    expected = images_.clone()
    expected[..., rows, columns] = images_[pairs.partners][..., rows, columns]
    assert torch.equal(x, expected)
    assert 0 < y[pairs.partners != torch.arange(6)].amax(1).min() < 1
    found, _ = one_step(learner, x, learner.attack(x, y), y)
    loss = oracle.vanilla_loss(w, stats, x, y, noise(x, 5), THREAT.eps)
    oracle.sgd(w, dict(zip(w, torch.autograd.grad(loss, list(w.values())))), {}, rate=0.01, decay=1e-4)
    assert found[0].item() == pytest.approx(loss.item(), rel=1e-6)
    for name, value in w.items():
        assert torch.allclose(learner.model.get_parameter(name), value, atol=1e-12), name


def test_iat_attacks_the_images_and_mixes_both_apart():
    learner, w, stats, x, y = start("interpolate", smoothing=0.2)
    learner.begin(5, 6)
    attacked = learner.attack(x, y)
    assert torch.allclose(attacked, oracle.pgd(w, stats, x, y, noise(x, 5), THREAT.eps), atol=1e-12)
    found, _ = one_step(learner, x, attacked, y)
    first, second = learner.pairs
    assert first.stays != second.stays
    assert not torch.equal(first.partners, second.partners)

    def part(pixels, pairs):
        """l * CE(z, y_i) + (1 - l) * CE(z, y_j), each with smoothed labels."""
        stays, other = pairs.stays, pairs.partners
        z = oracle.forward(w, stats, stays * pixels + (1 - stays) * pixels[other], train=True)
        own, theirs = (F.one_hot(labels, 3) * 0.8 + 0.2 / 3 for labels in (y, y[other]))
        return stays * oracle.ce(z, own) + (1 - stays) * oracle.ce(z, theirs)

    loss = (part(x, first) + part(attacked, second)) / 2
    oracle.sgd(w, dict(zip(w, torch.autograd.grad(loss, list(w.values())))), {}, rate=0.01, decay=1e-4)
    assert found[0].item() == pytest.approx(loss.item(), rel=1e-6)
    for name, value in w.items():
        assert torch.allclose(learner.model.get_parameter(name), value, atol=1e-12), name


def test_of_natural_images_it_is_mixup():
    learner, w, stats, x, y = start("interpolate")
    learner.begin(1, 6)
    pairs = learner.pairs[0]
    mixed = pairs.stays * x + (1 - pairs.stays) * x[pairs.partners]
    labels = pairs.stays * F.one_hot(y, 3) + (1 - pairs.stays) * F.one_hot(y[pairs.partners], 3)
    objective = METHODS["natural"].interpolated
    loss = objective(learner, x, x, y, learner.weights).total
    assert torch.allclose(loss, oracle.ce(oracle.forward(w, stats, mixed, train=True), labels))


# --- whole runs ------------------------------------------------------------------------------------------------------


def tune(augmentation, **changes):
    settings = QUICK | {"reference": "best", "augmentation": augmentation, "method": METHOD.get(augmentation)} | changes
    return finetune(network(), images(36, size=16), images(12, 1, size=16), THREAT, **settings)


@pytest.mark.parametrize("augmentation", MIXED)
def test_draws_depend_on_seed_epoch_and_step_alone(augmentation):
    learner, _, _, x, _ = start(augmentation)
    found = []
    for epoch, step in ((1, 0), (2, 0), (1, 1), (1, 0)):
        prepare(learner, x, torch.arange(6), epoch, step)
        found.append([pairs.stays for pairs in learner.pairs])
    assert found[0] == found[3]
    assert len({tuple(shares) for shares in found}) == 3


@pytest.mark.parametrize("augmentation", MIXED)
def test_a_run_that_was_killed_ends_as_one_that_was_not(augmentation, tmp_path, monkeypatch):
    whole, keep = tune(augmentation), loop.keep

    def killed(learner, done, file):
        keep(learner, done, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(augmentation, checkpoints=tmp_path)
    monkeypatch.setattr(loop, "keep", keep)
    again = tune(augmentation, checkpoints=tmp_path)
    assert weights_sha256(again.model.state_dict()) == weights_sha256(whole.model.state_dict())


@pytest.mark.parametrize("augmentation", MIXED)
@pytest.mark.parametrize("changes", [{"attack": "single"}, {"weight_attack": 0.01}])
def test_mixed_labels_go_with_one_gradient_and_with_a_weight_attack(augmentation, changes):
    tuned = tune(augmentation, epochs=1, **changes)
    assert all(torch.isfinite(p).all() for p in tuned.model.parameters())


@pytest.mark.parametrize("method", ["natural", "linear"])
@pytest.mark.parametrize("augmentation", MIXED)
def test_the_twin_and_the_head_alone_learn_from_mixed_images_too(augmentation, method):
    mixed, plain = (tune(one, method=method, epochs=1).history[0]["loss"] for one in (augmentation, "crop_flip"))
    assert mixed > 0
    assert mixed != plain


@pytest.mark.parametrize("method", ["autolora", "twins", "madry"])
def test_cutmix_goes_with_each_loss_on_whole_labels(method):
    mixed, plain = (tune(one, method=method, epochs=1).history[0]["loss"] for one in ("cutmix", "crop_flip"))
    assert mixed > 0
    assert mixed != plain


def test_one_step_above_eight_with_mixed_labels():
    """ELLE-A's term is on the mixed label too."""
    found = finetune(
        network(), images(32), images(12, 1), Threat("linf", "12/255"),
        **QUICK | {"method": "madry", "attack": "single", "augmentation": "cutmix", "epochs": 1},
    )  # fmt: skip
    assert found.history[0]["loss"] > 0
