"""Each attack against its paper, told again by a slow oracle, and against networks on which the answer is known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from autolora.attacks import apgd, square
from autolora.attacks.apgd import APGD, dlr, start_point, targeted_dlr
from autolora.attacks.apgd_l1 import APGDL1, to_ball
from autolora.attacks.engine.draws import bits, bits_in_torch, image_keys, normal, shifted, uniform
from autolora.attacks.engine.network import Network, lengths
from autolora.attacks.fab import FAB, TargetedFAB, to_hyperplane
from autolora.attacks.pgd import project, random_in_ball
from autolora.attacks.square import SquareL1, SquareL2, SquareLinf
from autolora.threat import Threat
from tests.attacks import oracle
from tests.attacks.nets import Linear, images, smooth, stands


def keys_of(n: int, name: str = "test") -> Tensor:
    return image_keys(0, name, [str(i) for i in range(n)])


def run(attack, x: Tensor, y: Tensor, target: Tensor | None = None, rounds: int | None = None):
    """All rows to the end, without slots: which were ever wrong, and all points that were tried."""
    state = attack.start(x, y, y if target is None else target, keys_of(len(x)), np.zeros(len(x), np.int64))
    broken, tried = torch.zeros(len(x), dtype=torch.bool), []
    for age in range(rounds or attack.rounds):
        wrong, points = attack.step(state, np.full(len(x), age))
        broken |= wrong
        tried.append(points.clone())
    return broken, tried, state


def test_draws_are_splitmix() -> None:
    keys = keys_of(5)
    for key, row in zip(keys.tolist(), bits(keys, 0, 7).tolist()):
        assert [v % (1 << 64) for v in row] == oracle.splitmix(key, 7)
    assert torch.equal(bits(keys, 3, 4), bits(keys, 0, 7)[:, 3:])
    assert torch.equal(bits(shifted(keys, torch.full((5,), 3)), 0, 4), bits(keys, 3, 4))


def test_draws_are_the_same_in_torch_and_numpy() -> None:
    """A GPU draws in torch."""
    keys = keys_of(5)
    assert torch.equal(bits_in_torch(keys, 3, 50), bits(keys, 3, 50))
    assert torch.equal((bits_in_torch(keys, 3, 50) >> 40 & 0xFFFFFF).float() * 2.0**-24, uniform(keys, 3, 50))


def test_draws_look_random() -> None:
    u = uniform(keys_of(50), 0, 2000)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean().item() - 0.5) < 0.01
    assert abs(u.var().item() - 1 / 12) < 0.01
    g = normal(keys_of(50), 0, 2000)
    assert abs(g.mean().item()) < 0.02
    assert abs(g.var().item() - 1) < 0.02
    assert abs(np.corrcoef(u[0].numpy(), u[1].numpy())[0, 1]) < 0.1


def test_draws_depend_on_seed_attack_and_id_alone() -> None:
    one = image_keys(0, "square", ["a", "b"])
    assert torch.equal(one.flip(0), image_keys(0, "square", ["b", "a"]))
    assert not (one == image_keys(1, "square", ["a", "b"])).any()
    assert not (one == image_keys(0, "apgd", ["a", "b"])).any()


def test_checkpoints() -> None:
    assert list(apgd.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "loss"), [("ce", apgd.cross_entropy), ("dlr", dlr), ("targeted", targeted_dlr)])
def test_apgd_follows_the_paper(norm: str, name: str, loss) -> None:
    net, x, eps, steps = smooth().double(), images(6).double(), {"linf": 0.06, "l2": 0.6}[norm], 100
    y = net(x).argmax(1)
    target = net(x).argsort(1)[:, -3]

    class Double(Network):
        def gradient_of(self, x, rows, loss):
            point = x.detach().requires_grad_(True)
            values = loss(self.model(point), rows)
            return self.model(point).detach(), values.detach(), torch.autograd.grad(values.sum(), point)[0]

    attack = APGD(Double(net, 6), Threat(norm, eps), loss, steps)
    broken, tried, state = run(attack, x, y, target)
    for i in range(len(x)):
        best, ever = oracle.apgd(net, x[i], int(y[i]), tried[0][i], norm, eps, steps, name, int(target[i]))
        assert state["best_loss"][i].item() == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert bool(broken[i]) == ever
    assert max(lengths(point - x, norm).max().item() for point in tried) <= eps + 1e-9


def test_exactly_three_quarters_that_rise_are_enough() -> None:
    """Of sixteen steps; a row that is not at a checkpoint counts on."""
    attack = APGD(Network(smooth(), 4), Threat("linf", 0.1))
    state = {"raised": torch.tensor([11.0, 12.0, 3.0]), "best_loss": torch.ones(3), "checked_loss": torch.zeros(3)}
    state |= {"eta": torch.full((3,), 0.2), "reduced": torch.zeros(3, dtype=torch.bool)}
    assert attack._check(state, torch.tensor([16, 16, 0])).tolist() == [True, False, False]
    assert state["eta"].tolist() == pytest.approx([0.1, 0.2, 0.2])
    assert state["raised"].tolist() == [0, 0, 3]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_lies_in_the_ball_stays_and_what_does_not_comes_to_its_surface(norm: str) -> None:
    x = torch.full((3, 3, 6, 6), 0.5)
    offset = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    offset /= lengths(offset, norm).view(-1, 1, 1, 1)
    inner, outer = (project(x + times * 0.2 * offset, x, Threat(norm, 0.2)) - x for times in (0.5, 3))
    assert torch.allclose(inner, 0.1 * offset, atol=1e-6)
    assert lengths(outer, norm).tolist() == pytest.approx([0.2] * 3, rel=1e-5)
    assert torch.equal(outer.sign(), offset.sign())
    beyond = project(x + 3, x, Threat(norm, 100.0 if norm == "l2" else 1.0))
    assert torch.equal(beyond, torch.ones_like(x))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: str) -> None:
    """Linf: each pixel is uniform; L2: so is the length."""
    noise = random_in_ball(torch.zeros(400, 3, 4, 4), Threat(norm, 0.2), torch.Generator().manual_seed(0))
    found = noise.abs() if norm == "linf" else lengths(noise, norm)
    assert found.max() <= 0.2 * (1 + 1e-6)
    assert found.mean().item() == pytest.approx(0.1, rel=0.1)
    assert (found < 0.05).float().mean().item() == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_start_lies_on_the_surface(norm: str) -> None:
    x = torch.full((8, 3, 6, 6), 0.5)
    assert torch.allclose(
        lengths(start_point(x, keys_of(8), Threat(norm, 0.3)) - x, norm), torch.tensor(0.3), atol=1e-5
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_hyperplane(norm: str) -> None:
    """Against bisection in float64: on the plane, in the box, and no longer than it must be."""
    draw = np.random.default_rng(0)
    t, w = draw.random((60, 40)), draw.normal(size=(60, 40)) * draw.choice([0, 1, 1e-4], (60, 40), p=[0.1, 0.8, 0.1])
    t[draw.random((60, 40)) < 0.2] = 0.0
    t[draw.random((60, 40)) < 0.2] = 1.0
    gap = draw.normal(size=60) * np.linspace(0.1, 12, 60)
    d = to_hyperplane(*(torch.from_numpy(v).float() for v in (t, w, gap)), norm).double().numpy()
    assert ((t + d > -1e-6) & (t + d < 1 + 1e-6)).all()
    reachable = 0
    for i in range(60):
        length = oracle.nearest(t[i], w[i], gap[i], norm)
        if np.isfinite(length):
            reachable += 1
            assert gap[i] + w[i] @ d[i] == pytest.approx(0, abs=2e-4)
            assert lengths(torch.from_numpy(d[i : i + 1]), norm).item() == pytest.approx(length, rel=1e-3, abs=1e-5)
        else:  # as far as it goes
            assert abs(gap[i] + w[i] @ d[i]) < abs(gap[i])
    assert 10 < reachable < 60


def test_hyperplane_of_a_flat_network() -> None:
    d = to_hyperplane(torch.rand(2, 9), torch.zeros(2, 9), torch.tensor([1.0, -1.0]), "l2")
    assert torch.equal(d, torch.zeros(2, 9))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", [FAB, TargetedFAB])
def test_fab_finds_the_boundary_of_a_linear_network(kind, norm: str) -> None:
    """Just inside the exact distance it fails, just outside it succeeds."""
    net = Linear(3)
    x = images(8) * 0.4 + 0.3
    y = net(x).argmax(1)
    target = net(x).argsort(1)[:, -2]
    size = {"linf": 0.02, "l2": 0.15, "l1": 0.6}[norm]
    for eps in (size, 2 * size):
        exact = stands(net, x, y, norm, eps)
        clear = (stands(net, x, y, norm, eps * 1.06) == exact) & (stands(net, x, y, norm, eps * 0.98) == exact)
        broken, _, _ = run(kind(Network(net, 8), Threat(norm, eps), 20), x, y, target)
        if kind is FAB:
            assert torch.equal(~broken[clear], exact[clear])
        else:  # one target only
            assert not (broken & exact).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_counts_what_lies_in_the_ball_and_nothing_beyond(norm: str) -> None:
    net, x = Linear(3), images(1) * 0.4 + 0.3
    y, target = net(x).argmax(1), net(x).argsort(1)[:, -2]
    _, (across,), _ = run(TargetedFAB(Network(net, 1), Threat(norm, 1.0)), x, y, target, rounds=1)
    for times in (0.995, 1.005):
        threat = Threat(norm, times * lengths(across - x, norm).item())
        broken, _, _ = run(TargetedFAB(Network(net, 1), threat), x, y, target, rounds=1)
        assert broken.tolist() == [times > 1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_moves_as_the_paper_says(norm: str) -> None:
    """One step from a point of its own, where the box is far: eq. 7 to 9, and the step back once it is across."""
    net = Linear(3).double()
    x, y = images(12).double() * 0.2 + 0.4, torch.zeros(12, dtype=torch.long)
    y = net(x).argmax(1)
    target = net(x).argsort(1)[:, -2]
    at = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    class Double(Network):
        def logits(self, x: Tensor) -> Tensor:
            return self.model(x)

    attack = TargetedFAB(Double(net, 12), Threat(norm, 1e-9))
    state = attack.start(x, y, target, keys_of(12), np.zeros(12, np.int64)) | {"point": at.clone()}
    wrong, tried = attack.step(state, np.zeros(12, np.int64))
    for i in range(12):
        w = (net.weight[target[i]] - net.weight[y[i]]).detach()
        d_k, d_0 = (
            -oracle_gap(net, point[i], y[i], target[i])
            * (w.sign() / w.abs().sum() if norm == "linf" else w / w.square().sum())
            for point in (at, x)
        )
        length = (lambda d: d.abs().max()) if norm == "linf" else (lambda d: d.norm())
        alpha = min(float(length(d_k) / (length(d_k) + length(d_0))), 0.1)
        expected = (1 - alpha) * (at[i].flatten() + 1.05 * d_k) + alpha * (x[i].flatten() + 1.05 * d_0)
        assert torch.allclose(tried[i].flatten(), expected, atol=1e-5)
        stays = x[i] + 0.9 * (tried[i] - x[i]) if net(tried[i][None]).argmax(1) != y[i] else tried[i]
        assert torch.allclose(state["point"][i], stays, atol=1e-7)
    assert not wrong.any()  # across the boundary, and outside a ball of 1e-9
    assert (net(tried).argmax(1) != y).any()


def oracle_gap(net: Linear, point: Tensor, y: Tensor, target: Tensor) -> Tensor:
    z = net(point[None])[0].detach()
    return z[target] - z[y]


def test_restarts_of_fab_begin_half_way_to_the_surface() -> None:
    x, y = images(4) * 0.4 + 0.3, torch.zeros(4, dtype=torch.long)
    attack = FAB(Network(smooth(4), 4), Threat("linf", 0.1))
    point = attack.start(x, y, y, keys_of(4), np.array([0, 1, 2, 0]))["point"]
    assert torch.equal(point[[0, 3]], x[[0, 3]])
    assert lengths(point - x, "linf")[[1, 2]].tolist() == pytest.approx([0.05, 0.05], rel=1e-4)


@pytest.mark.parametrize("samples", [1, 5])
def test_gradients_are_averaged_over_passes_at_random(samples: int) -> None:
    """The k-th pass answers k times as steeply: the mean of 1 to n."""
    passes = []

    def steeper(p: Tensor) -> Tensor:
        passes.append(len(p))
        return len(passes) * p.flatten(1)[:, :2]

    attack = APGD(Network(steeper, 4), Threat("linf", 0.1), lambda z, y, target: z[:, 0], 1, samples)
    x, y = images(4), torch.zeros(4, dtype=torch.long)
    _, _, gradient = attack.ascent({"point": x, "y": y, "target": y})
    assert gradient.flatten(1)[:, 0].tolist() == pytest.approx([(samples + 1) / 2] * 4)
    assert passes == [4] * samples


def test_apgd_l1_narrows_its_ball_and_its_moves() -> None:
    """Three, two and one eps; a move is along the largest slopes, two thirds as many as it has moved along."""
    attack = APGDL1(Network(smooth(4), 4), Threat("l1", 2.0))
    radius = attack.radius(np.arange(103), torch.device("cpu")).tolist()
    assert sorted(set(radius), reverse=True) == [6.0, 4.0, 2.0]
    assert radius == sorted(radius, reverse=True)
    gradient = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    state = {"moved": torch.tensor([30.0]), "eta": torch.tensor([4.0])}
    move = attack.sparse_step(gradient, state).flatten()
    assert 18 <= int((move != 0).sum()) <= 22  # 30 / 1.5
    assert gradient.flatten()[move != 0].abs().min() > gradient.flatten()[move == 0].abs().max()
    assert move.abs().sum().item() == pytest.approx(4.0, rel=1e-4)


def test_square_schedule() -> None:
    """p = 0.8 halves after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries."""
    sides = [square.side(q, 32, 32, 1) for q in (0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001)]
    shares = [0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625]
    assert sides == [max(round((p * 1024) ** 0.5), 1) for p in shares]


def test_square_linf_stays_on_the_corners() -> None:
    x, eps = images(6) * 0.8 + 0.1, 0.05
    net = smooth()
    _, tried, state = run(SquareLinf(Network(net, 6), Threat("linf", eps), 60), x, net(x).argmax(1))
    for points in tried:
        assert torch.allclose((points - x).abs(), torch.tensor(eps), atol=1e-6)
    margins = [m for m in state["margin"].tolist()]
    assert all(np.isfinite(margins))
    changed = ((tried[-1] != tried[-2]).any(1)).flatten(1).sum(1)
    assert (changed < 36).all()


@pytest.mark.parametrize(("norm", "kind"), [("linf", SquareLinf), ("l2", SquareL2), ("l1", SquareL1)])
def test_square_keeps_no_square_that_changes_nothing_and_begins_with_the_first(norm: str, kind, monkeypatch) -> None:
    """On a network that answers the same to all: what follows the start is the first query of the schedule."""
    numbers, propose = [], kind.propose
    monkeypatch.setattr(
        kind, "propose", lambda self, s, index, age: numbers.extend(age) or propose(self, s, index, age)
    )
    attack = kind(Network(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2), 2), Threat(norm, 0.5), queries=6)
    _, tried, state = run(attack, images(2), torch.zeros(2, dtype=torch.long))
    assert numbers == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert torch.equal(state["best"], tried[0])


def test_square_linf_proposal_follows_the_paper() -> None:
    """Rows of different ages at once: squares of different sizes in one batch, one of them of two places."""
    x, eps, ages, rows = images(4), 0.2, np.array([3, 40, 150, 400, 2]), [0, 1, 2, 3, 1]
    net = smooth()
    attack = SquareLinf(Network(net, 5), Threat("linf", eps), 500)
    state = attack.start(x, net(x).argmax(1), net(x).argmax(1), keys_of(4), np.zeros(4, np.int64))
    proposed = attack.propose(state, torch.tensor(rows), ages)
    u = attack.draws(state["keys"][rows], ages, 3 * 6, 5)
    sides = [square.side(age, 6, 6, 1) for age in ages.tolist()]
    assert len(set(sides)) > 2
    for place, (row, side) in enumerate(zip(rows, sides)):
        top, left = (int(v * (6 - side + 1)) for v in u[place, :2])
        window = (slice(None), slice(top, top + side), slice(left, left + side))
        sign = torch.where(u[place, 2:] < 0.5, -1.0, 1.0)[:, None, None]
        expected = state["best"][row].clone()
        expected[window] = (x[row][window] + eps * sign).clamp(0, 1)
        assert torch.equal(proposed[place], expected)


@pytest.mark.parametrize("ages", [[3] * 4, [400] * 4, [3, 40, 150, 400]])
@pytest.mark.parametrize(("kind", "norm", "eps"), [(SquareL2, "l2", 0.5), (SquareL1, "l1", 3.0)])
def test_square_l2_and_l1_proposals_follow_the_paper(kind, norm: str, eps: float, ages: list[int]) -> None:
    x = images(4) * 0.6 + 0.2
    net = smooth()
    attack = kind(Network(net, 4), Threat(norm, eps), 500)
    state = attack.start(x, net(x).argmax(1), net(x).argmax(1), keys_of(4), np.zeros(4, np.int64))
    proposed = attack.propose(state, torch.arange(4), np.array(ages))
    u = attack.draws(state["keys"], np.array(ages), 36 * 4, 8)
    sides = attack.sides_at(np.array(ages), 6, 6, 3).tolist()
    for i, side in enumerate(sides):
        expected = oracle.square_window(x[i], state["best"][i], u[i].tolist(), side, norm, eps)
        assert torch.allclose(proposed[i], expected, atol=2e-5)


@pytest.mark.parametrize("side", [6, 11, 17])
@pytest.mark.parametrize(
    ("kind", "norm", "eps"), [(SquareLinf, "linf", 0.1), (SquareL2, "l2", 0.5), (SquareL1, "l1", 3.0)]
)
def test_square_starts_as_the_paper_does(kind, norm: str, eps: float, side: int) -> None:
    """Also where five tiles do not fill the image."""
    x, keys = images(3, side), keys_of(3)
    y = torch.zeros(3, dtype=torch.long)
    state = kind(Network(smooth(side=side), 3), Threat(norm, eps), 10).start(x, y, y, keys, np.zeros(3, np.int64))
    for i, u in enumerate(uniform(keys, 0, 4 * side * side).tolist()):
        assert torch.allclose(state["best"][i], oracle.square_tiles(x[i], u, norm, eps), atol=2e-5)


@pytest.mark.parametrize(("norm", "kind"), [("linf", SquareLinf), ("l2", SquareL2), ("l1", SquareL1)])
def test_square_lowers_the_margin_inside_the_ball(norm: str, kind) -> None:
    net, x = smooth(), images(6)
    threat = Threat(norm, {"linf": 0.1, "l2": 0.8, "l1": 4.0}[norm])
    y = net(x).argmax(1)
    z = net(x)
    clean = z.gather(1, y[:, None]).squeeze(1) - apgd.others(z, y)
    _, tried, state = run(kind(Network(net, 6), threat, 300), x, y)
    assert (state["margin"] < clean).all()
    assert max(lengths(points - x, norm).max().item() for points in tried) <= threat.eps * (1 + 1e-4)
    assert all(points.min() >= 0 and points.max() <= 1 for points in tried)


@pytest.mark.parametrize(("norm", "kind"), [("linf", SquareLinf), ("l2", SquareL2), ("l1", SquareL1)])
def test_square_looks_ahead_without_a_trace(norm: str, kind) -> None:
    """Few rows in a large batch try their next queries at once: the same points, in a fraction of the forwards."""
    net, x = smooth(), images(5)
    y = net(x).argmax(1)
    calls = []

    def one_by_one(points: Tensor) -> Tensor:  # a row's logits belong to the row, whatever the batch
        calls.append(len(points))
        return torch.cat([net(point[None]) for point in points])

    found = {}
    for batch in (5, 21):
        calls.clear()
        attack = kind(Network(one_by_one, batch), Threat(norm, {"linf": 0.06, "l2": 0.6, "l1": 3.0}[norm]), 60)
        state = attack.start(x, y, y, keys_of(5), np.zeros(5, np.int64))
        age, broken, first = np.zeros(5, np.int64), torch.zeros(5, dtype=torch.bool), torch.zeros_like(x)
        while (age < attack.rounds).any():
            going = torch.from_numpy(age < attack.rounds)
            wrong, points = attack.step(state, age)
            new = wrong & going & ~broken
            first[new], broken = points[new], broken | new
            age += 1
        found[batch] = (broken, first, state["margin"][~broken], state["best"][~broken], len(calls))
    for alone, ahead in zip(found[5][:-1], found[21][:-1]):
        assert torch.equal(alone, ahead)
    assert found[5][0].any()
    assert found[21][-1] < 0.8 * found[5][-1]


def test_l1_ball_and_box() -> None:
    draw = np.random.default_rng(0)
    x, offset = draw.random((20, 30)), draw.normal(size=(20, 30)) * 0.4
    radius = torch.linspace(0.2, 14, 20)
    found = to_ball(torch.from_numpy(x).float(), torch.from_numpy(offset).float(), radius).numpy()
    for i in range(20):
        assert np.allclose(found[i], oracle.into_l1_ball(x[i], offset[i], float(radius[i])), atol=1e-4)


def test_apgd_l1_follows_the_authors_code() -> None:
    net, x, threat = smooth().double(), images(6).double(), Threat("l1", 4.0)
    y = net(x).argmax(1)

    class Double(Network):
        def gradient_of(self, x, rows, loss):
            point = x.detach().requires_grad_(True)
            values = loss(self.model(point), rows)
            return self.model(point).detach(), values.detach(), torch.autograd.grad(values.sum(), point)[0]

    broken, tried, state = run(APGDL1(Double(net, 6), threat), x, y)
    for i in range(len(x)):
        bests, ever = oracle.apgd_l1(net, x[i], int(y[i]), tried[0][i], 4.0, 100)
        assert state["best_loss"][i].item() == pytest.approx(bests[-1], rel=1e-7)
        assert bool(broken[i]) == ever


def test_apgd_l1_reaches_the_exact_answer() -> None:
    net = Linear(4, scale=0.5)
    x = images(10)
    y = net(x).argmax(1)
    threat = Threat("l1", 1.2)
    attack = APGDL1(Network(net, 10), threat)
    broken, tried, _ = run(attack, x, y)
    exact = stands(net, x, y, "l1", 1.2)
    assert not (broken & exact).any()
    assert (broken == ~exact).float().mean() >= 0.8
    assert attack.rounds == 103
    assert max(lengths(points - x, "l1").max().item() for points in tried[62:]) <= 1.2 * (1 + 1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_goes_where_the_boundary_is_nearest_and_not_to_the_likeliest_class(norm):
    """Class 1 is one below the label and steep, class 2 a fifth below and flat: nothing in the box reaches it."""
    net, x, y = Linear(3), torch.full((2, 3, 6, 6), 0.5), torch.zeros(2, dtype=torch.long)
    net.weight.data = torch.tensor([0.0, 10.0, 0.001])[:, None].expand(3, 108).clone()
    net.bias.data = torch.tensor([0.0, -1.0, -0.2]) - net.weight.data.sum(1) / 2
    assert net(x).argmax(1).tolist() == [0, 0]
    broken, tried, _ = run(FAB(Network(net, 2), Threat(norm, 0.2)), x, y, rounds=1)
    assert broken.all()
    assert net(tried[0]).argmax(1).tolist() == [1, 1]


@pytest.mark.parametrize(("norm", "nearest"), [("linf", 1), ("l2", 2), ("l1", 3)])
def test_fab_measures_boundaries_in_the_norm_of_the_threat(norm: str, nearest: int) -> None:
    """Three classes as far below the label: one rises with every pixel a little, one with nine, one with one."""
    net, x, y = Linear(4), torch.full((2, 3, 6, 6), 0.5), torch.zeros(2, dtype=torch.long)
    net.weight.data = torch.zeros(4, 108)
    for row, (pixels, slope) in enumerate(((108, 0.15), (9, 1.2), (1, 3.0)), 1):
        net.weight.data[row, :pixels] = slope
    net.bias.data = torch.tensor([0.0, -0.3, -0.3, -0.3]) - net.weight.data.sum(1) / 2
    _, tried, _ = run(FAB(Network(net, 2), Threat(norm, 1.0)), x, y, rounds=1)
    assert net(tried[0]).argmax(1).tolist() == [nearest] * 2
