"""A mixture against what it promises: whose answer counts, its surrogate's gradient, its search, its three attacks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import autolora
from autolora.attacks.engine.network import Network
from autolora.attacks.eps_curve import Point, eps_curve
from autolora.attacks.mixture import Shown
from autolora.attacks.verdicts import Check
from autolora.attacks.versions import Budget
from autolora.backbones.classifier import (
    Classifier,
    load_classifier,
    mix,
    read_notes,
    robust_part,
    save_classifier,
    with_view,
)
from autolora.backbones.mixture import LogitMap, mixed, normed, surrogate
from autolora.command.models import Asked, target
from autolora.common.errors import BadArgument
from autolora.export.runtime import logits, open_session
from autolora.threat import Threat
from autolora.training import nuts
from autolora.training.nuts import Logits, fits, margins, search
from tests.export.nets import tiny
from tests.method.small import images

THREAT, STRONG = Threat("linf", "8/255"), Threat("linf", "40/255")
MAPPINGS = [LogitMap(3.0, alpha=0.7), LogitMap(5.0, 4.0, -1.1, 0.9, 0.8), LogitMap(0.5, 2.0, 0.3, 0.6, 0.9)]


def draws(n: int, classes: int = 10, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def pair(mapping: LogitMap) -> Classifier:
    return mix(tiny(0), tiny(1), mapping)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_f_is_the_logarithm_of_mixed_probabilities(mapping: LogitMap) -> None:
    h, g = draws(20).double(), draws(20, seed=1).double()
    u = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True) + 1e-8).sqrt()
    if mapping.shift is not None:
        u = F.gelu(u + mapping.shift)
    m = mapping.scale * u.sign() * u.abs() ** mapping.power
    p = (1 - mapping.alpha) * F.one_hot(g.argmax(1), 10) + mapping.alpha * m.softmax(1)
    assert torch.allclose(mixed(h, g, mapping).exp(), p)
    assert torch.allclose(p.sum(1), torch.ones(20).double())


def test_f_is_finite_where_the_robust_network_is_sure() -> None:
    h = 1000 * F.one_hot(torch.arange(10)).float()
    assert mixed(h, h.roll(1, 0), LogitMap(20.0, 6.0, alpha=0.999)).isfinite().all()


def test_the_whole_share_of_the_robust_network_gives_its_answers() -> None:
    h, g = draws(200), draws(200, seed=1)
    assert torch.equal(mixed(h, g, LogitMap(2.0, alpha=1.0)).argmax(1), h.argmax(1))


def test_no_answer_of_the_accurate_network_changes_a_large_margin_and_one_changes_a_small_one() -> None:
    mapping, h = LogitMap(1.5, alpha=0.75), draws(300)
    answers = torch.stack(
        [mixed(h, F.one_hot(torch.tensor(k), 10).expand(300, 10).float(), mapping).argmax(1) for k in range(10)]
    )
    kept = (answers == h.argmax(1)).all(0)
    large = margins(mapping(h)) >= (1 - mapping.alpha) / mapping.alpha
    assert 20 < large.sum() < 280
    assert torch.equal(kept, large)


def test_the_norm_does_not_see_scale_and_offset_nor_more_than_250_logits() -> None:
    z = draws(8, classes=400).double()
    assert torch.allclose(normed(3.7 * z + 11), normed(z))
    top = z.sort(1, descending=True).values[:, :250]
    assert torch.allclose(normed(z)[:, 0], (z[:, 0] - top.mean(1)) / (top.var(1) + 1e-8).sqrt())


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_surrogate_has_the_value_of_f_and_the_gradient_of_f_d(mapping: LogitMap) -> None:
    mixture, x, y = pair(mapping), torch.rand(6, 3, 8, 8, requires_grad=True), torch.arange(6)
    outside = with_view(mixture, "surrogate")
    assert torch.equal(outside(x), mixture(x))
    h, g, b = tiny(0)(x).double(), tiny(1)(x).double(), mapping.surrogate_alpha
    p = (1 - b) * g.softmax(1) + 0.9 * b * h.softmax(1) + 0.1 * b * mapping(h).softmax(1)
    assert torch.allclose(surrogate(h, g, mapping), p.log())
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    (ours,) = torch.autograd.grad((outside(x) * weight).sum(), x)
    (theirs,) = torch.autograd.grad((p.log() * weight).sum(), x)
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert (torch.autograd.grad(F.cross_entropy(mixture(x), y), x)[0] - ours).abs().max() > 1e-4


def test_a_file_holds_both_and_says_how(tmp_path: Path) -> None:
    mixture, x = pair(MAPPINGS[1]), torch.rand(5, 3, 8, 8)
    save_classifier(mixture, tmp_path / "two.safetensors")
    again = load_classifier(tmp_path / "two.safetensors")
    assert torch.equal(again(x), mixture(x))
    assert again.body.mapping == MAPPINGS[1]
    save_classifier(tiny(0), tmp_path / "one.safetensors")
    assert "mixture" not in json.loads(read_notes(tmp_path / "one.safetensors")["spec"])
    other = tiny(1)
    other.spec = dataclasses.replace(other.spec, mean=(0.1,))
    with pytest.raises(ValueError, match="two networks of one kind"):
        mix(tiny(0), other, MAPPINGS[0])


@pytest.mark.slow
def test_one_onnx_file_answers_as_the_mixture(tmp_path: Path) -> None:
    mixture, x = pair(MAPPINGS[1]), torch.rand(32, 3, 8, 8)
    autolora.export_onnx(mixture, tmp_path / "two.onnx", {"mix": "nuts"})
    answers = logits(open_session(tmp_path / "two.onnx"), x.numpy())
    assert np.array_equal(answers.argmax(1), mixture(x).argmax(1).numpy())
    assert np.abs(answers - mixture(x).detach().numpy()).max() < 1e-4
    asked = Asked(str(tmp_path / "two.onnx"), None, None)
    with pytest.raises(ValueError, match=r"two.onnx is a mixture, whose own gradients lead nowhere"):
        target(asked)
    assert target(asked._replace(scores_only=True)).network(x[:1]).shape == (1, 10)


# --- the search -------------------------------------------------------------------------------------------------------


def planted(n: int, classes: int = 10, seed: int = 0) -> Logits:
    """Sure answers are right, unsure ones half of the time; an attack breaks a fifth, and takes some margin of all."""
    draw = torch.Generator().manual_seed(seed)
    z, y = torch.randn(n, classes, generator=draw), torch.randint(0, classes, (n,), generator=draw)
    sure = torch.rand(n, generator=draw) < 0.6
    z[torch.arange(n), y] = z.amax(1) + torch.where(
        sure, 4.0, torch.where(torch.rand(n, generator=draw) < 0.5, 0.3, -0.3)
    )
    attacked = z.clone()
    attacked[torch.arange(n), y] -= torch.where(torch.rand(n, generator=draw) < 0.2, 6.0, 1.0)
    return Logits(z.double(), attacked.double(), y)


@pytest.mark.parametrize("n", [150, 2000])
def test_no_twin_takes_more_than_half_a_point_and_an_ideal_one_mends(n: int) -> None:
    found = planted(n)
    mapping, why = search(found)
    assert mapping is not None
    worst = found.attacked.clone().scatter_(1, found.y[:, None], -torch.inf)  # the twin names the strongest wrong class
    left = mixed(found.attacked.float(), worst.float(), mapping).argmax(1) == found.y
    lost = int((found.stands & ~left).sum())
    assert lost <= (0 if n == 150 else 0.005 * n)
    twin = F.one_hot(found.y, 10).float()
    right = found.clean.argmax(1) == found.y
    mended = mixed(found.clean.float(), twin, mapping).argmax(1) == found.y
    assert torch.equal(mended | right, mended)
    assert f"{int((~right).sum())} images read wrongly {int((~mended).sum())} are too sure" in why
    assert n == 150 or mended.all()
    assert fits(found, mapping)
    h, rival, b = found.attacked[found.stands], worst[found.stands].argmax(1), mapping.surrogate_alpha
    kept = ((1 - b) * F.one_hot(rival, 10) + b * h.softmax(1)).argmax(1) == found.y[found.stands]
    assert 0.9425 <= kept.double().mean() < 0.9425 + 2 / len(h)  # the surrogate's share: published


def test_a_shift_that_turns_answers_around_is_refused() -> None:
    """Of three classes the largest norm is small enough for GELU to fall."""
    z = torch.tensor([[0.6, 0.5, 0.0]]).double()
    assert LogitMap(1.0, 1.0, -1.5)(z).argmax(1) != z.argmax(1)
    assert not fits(Logits(z, z, torch.tensor([0])), LogitMap(1.0, 1.0, -1.5))


def test_a_map_whose_values_float32_cannot_tell_apart_is_refused() -> None:
    z, y = draws(20).double(), torch.arange(20) % 10
    maps = {scale: LogitMap(scale)(z) for scale in (5.0, 10.0, 20.0, 40.0)}
    spreads = {scale: float((m.amax(1) - m.amin(1)).max()) for scale, m in maps.items()}
    assert min(spreads.values()) < 60 < max(spreads.values())
    for scale, spread in spreads.items():
        assert fits(Logits(z, z, y), LogitMap(scale)) == (spread <= 60)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (planted(200, classes=2), "two classes"),
        (planted(99), "99 validation images are fewer than 100"),
        (planted(200)._replace(y=torch.full((200,), 11)), "no validation image stands"),
    ],
)
def test_where_a_mixture_makes_no_sense(found: Logits, words: str) -> None:
    mapping, why = search(found)
    assert mapping is None
    assert words in why


def test_an_image_stands_that_is_read_rightly_as_it_is_and_under_attack() -> None:
    right, wrong = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
    found = Logits(
        torch.stack([right, right, wrong, wrong]), torch.stack([right, wrong, right, wrong]), torch.zeros(4).long()
    )
    assert found.stands.tolist() == [True, False, False, False]


# --- attacks ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown() -> tuple[Classifier, Tensor, Tensor]:
    """Two networks that tell three colours apart, as one."""
    x, y = (torch.from_numpy(part) for part in images(60))
    networks = []
    for seed in (0, 1):
        network = tiny(seed).requires_grad_(True)
        optimiser = torch.optim.Adam(network.parameters(), 0.02)
        for _ in range(60):
            optimiser.zero_grad()
            F.cross_entropy(network(x / 255), y).backward()
            optimiser.step()
        networks.append(network)
    return mix(*networks, LogitMap(1.0, alpha=0.7, surrogate_alpha=0.7)), x[:12], y[:12]


def test_an_image_counts_only_if_it_stands_three_ways(shown, monkeypatch) -> None:
    """Without the surrogate's gradient what is left is its own, and points that fool the robust network."""
    mixture, x, y = shown
    attack = {"version": "fast", "budget": Budget(steps=8), "show": False}
    report = autolora.autoattack(mixture, x, y, STRONG, **attack)
    ways = ["apgd-ce", "apgd-t", "own-apgd-ce", "own-apgd-t", "transfer-apgd-ce", "transfer-apgd-t"]
    assert [a.name for a in report.attacks] == ways
    assert "by a surrogate's gradient" in report.deviation
    assert torch.equal(mixture(report.adversarial).argmax(1) == y, report.robust)
    assert report.found.sum() > 0
    for name in ("before", "after"):
        monkeypatch.setattr(f"autolora.attacks.autoattack.checks.{name}", lambda *_: [])
    monkeypatch.setattr(
        "autolora.attacks.autoattack.checks.attack_works", lambda *_, **__: Check(10, "", "not run", "")
    )
    monkeypatch.setattr("autolora.backbones.mixture.surrogate", lambda h, g, m: 0 * h)
    broken = {a.name: a.broken for a in autolora.autoattack(mixture, x, y, STRONG, **attack).attacks}
    assert broken["apgd-ce"] + broken["apgd-t"] < report.found.sum() <= sum(broken.values())


def test_passes_of_all_three_ways_are_counted(shown) -> None:
    """Of one image that no way breaks: four gradients of two passes, and on the third way a look at each point."""
    mixture, x, _ = shown
    one = x[:1]
    alone = {"version": "fast", "budget": Budget(steps=3), "batch_size": 1, "show": False}
    report = autolora.autoattack(mixture, one, mixture(one / 255).argmax(1), Threat("linf", 1e-6), **alone)
    forwards = {a.name: a.forwards for a in report.attacks}
    assert report.robust.all()
    assert forwards["apgd-ce"] == forwards["own-apgd-ce"] == 4 * 2
    assert forwards["transfer-apgd-ce"] == 4 * 2 + 4


def test_the_curve_over_eps_asks_all_three_ways_too(shown, monkeypatch) -> None:
    mixture, x, y = shown
    points = {p.eps: p.accuracy for p in curve(mixture, x, y)}
    assert points[STRONG.eps] < points[0.0]
    monkeypatch.setattr("autolora.backbones.mixture.surrogate", lambda h, g, m: 0 * h)
    without = {p.eps: p.accuracy for p in curve(mixture, x, y)}
    monkeypatch.setattr("autolora.attacks.eps_curve.is_mixture", lambda model: False)  # the first way alone
    alone = {p.eps: p.accuracy for p in curve(mixture, x, y)}
    assert without[STRONG.eps] < alone[STRONG.eps]


def curve(model: Classifier, x: Tensor, y: Tensor) -> list[Point]:
    return eps_curve(model, x, y, STRONG, batch_size=12)


def test_copies_are_refused(shown) -> None:
    with pytest.raises(BadArgument, match="a mixture is attacked in float32"):
        autolora.autoattack(*shown, STRONG, precision="mixed", show=False)


def test_transfer_to_the_same_network_is_the_attack_itself(shown) -> None:
    from autolora.attacks.apgd import APGD
    from autolora.attacks.engine.draws import image_keys

    model, (_, x, y) = robust_part(shown[0]), shown
    network, points = Network(model, 12), x / 255
    keys, attempts = image_keys(0, "any", [str(i) for i in range(12)]), np.zeros(12, dtype=np.int64)
    found = []
    for attack in (APGD(network, THREAT, steps=5), Shown(APGD(network, THREAT, steps=5), network, THREAT)):
        state, age = attack.start(points, y, y, keys, attempts), np.zeros(12, dtype=np.int64)
        found.append([attack.step(state, age + i) for i in range(attack.rounds)])
    for (wrong, point), (again, same) in zip(*found):
        assert torch.equal(wrong, again)
        assert torch.equal(point, same)


def test_the_search_is_given_what_the_dial_counts(shown) -> None:
    mixture, x, y = shown
    alone = robust_part(mixture)
    found = nuts.logits_of(alone, x, y, STRONG, batch=5)
    clean, robust = nuts.judge(alone, x, y, STRONG)
    assert np.array_equal(found.clean.argmax(1) == y, clean)
    assert np.array_equal(found.stands, robust)
    assert not np.array_equal(clean, robust)


def by_transfer(mixture: Classifier, x: Tensor, y: Tensor, threat: Threat) -> np.ndarray:
    """The mixture's answers where twenty steps up the robust network's own loss lead, written out."""
    start, alone = x / 255, robust_part(mixture)
    point = start.clone()
    for _ in range(20):
        point.requires_grad_(True)
        (slope,) = torch.autograd.grad(F.cross_entropy(alone(point), y, reduction="sum"), point)
        point = point.detach() + threat.eps / 4 * slope.sign()
        point = point.clamp(start - threat.eps, start + threat.eps).clamp(0, 1)
    return (mixture(point).argmax(1) == y).numpy()


def test_a_point_beyond_the_ball_counts_nowhere() -> None:
    """APGD for L1 begins at three times the radius."""

    class Far:
        rounds, gradients, forwards = 1, 1.0, 0.0

        def step(self, s: dict[str, Tensor], age: np.ndarray) -> tuple[Tensor, Tensor]:
            return torch.ones(2, dtype=torch.bool), s["x"] + torch.tensor([0.09, 0.11]).view(2, 1, 1, 1)

    fooled = Network(lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2), 2)
    state = {"x": torch.full((2, 1, 1, 1), 0.5), "y": torch.zeros(2, dtype=torch.long)}
    found, _ = Shown(Far(), fooled, Threat("linf", 0.1)).step(state, np.zeros(2, dtype=np.int64))
    assert found.tolist() == [True, False]


def test_the_dials_judge_takes_all_three(shown) -> None:
    mixture, x, y = shown
    clean, robust = nuts.judged(mixture, x, y, STRONG)
    assert clean.any()
    ways = {
        "surrogate": nuts.judge(with_view(mixture, "surrogate"), x, y, STRONG)[1],
        "own": nuts.judge(mixture, x, y, STRONG)[1],
        "transfer": by_transfer(mixture, x, y, STRONG),
    }
    assert np.array_equal(robust, np.logical_and.reduce(list(ways.values())))
    far = Threat("linf", "56/255")  # here the two lead to other images
    transferred = nuts._stands_transfer(mixture, x, y, far)
    assert np.array_equal(transferred, by_transfer(mixture, x, y, far))
    assert not np.array_equal(transferred, nuts.judge(mixture, x, y, far)[1])


def test_a_hundred_images_are_enough_for_a_mixture():
    assert search(planted(100))[0] is not None


def test_no_image_is_given_up_where_fewer_than_five_hundred_stand():
    found = planted(600)
    assert 100 < found.stands.sum() < 500
    mapping, _ = search(found)
    assert mapping is not None
    worst = found.attacked.clone().scatter_(1, found.y[:, None], -torch.inf)
    left = mixed(found.attacked.float(), worst.float(), mapping).argmax(1) == found.y
    assert (left | ~found.stands).all()
