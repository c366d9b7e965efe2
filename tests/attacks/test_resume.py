"""A run that dies goes on where it stopped, alone or in company, and ends as if nothing had happened."""

import contextlib
import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from autolora import Threat, autoattack
from autolora.attacks.autoattack import black_box
from autolora.attacks.engine.slots import Slots
from autolora.attacks.verdicts import CheckFailed
from autolora.attacks.versions import Budget
from tests.attacks.nets import images, smooth

THREAT = Threat("linf", 0.05)


class Dies:
    """A network that gives up after so many forwards."""

    def __init__(self, lives: int) -> None:
        self.net, self.left = smooth(4), lives

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.net(x)


def attack(net, folder=None, seed: int = 0, **more):
    x = images(18)
    arguments = {"version": "fast", "batch_size": 4, "show": False} | more
    return autoattack(net, x, smooth(4)(x).argmax(1), THREAT, seed=seed, progress=folder, **arguments)


@pytest.mark.slow
def test_resume_at_any_moment(tmp_path) -> None:
    whole, died, spent = attack(smooth(4)), 0, 0
    for budget in (400, 700, 1000, 1300, 100_000):
        net = Dies(budget)
        try:
            report = attack(net, tmp_path)
        except KeyboardInterrupt:
            died += 1
        spent = budget - net.left
    assert died >= 2
    assert torch.equal(report.robust, whole.robust)
    assert torch.equal(report.adversarial, whole.adversarial)
    assert [a.robust_accuracy for a in report.attacks] == [a.robust_accuracy for a in whole.attacks]
    assert sum(a.forwards for a in report.attacks) < sum(a.forwards for a in whole.attacks)
    again = Dies(100_000)
    attack(again, tmp_path)
    assert 100_000 - again.left <= spent  # nothing is attacked twice


@pytest.mark.parametrize("change", [{"seed": 1}, {"version": "rand"}, {"batch_size": 5}, {"precision": "mixed"}])
def test_progress_of_another_evaluation_is_refused(tmp_path, change: dict) -> None:
    attack(smooth(4), tmp_path)
    with pytest.raises(ValueError, match=f"another evaluation, which differs in {next(iter(change))} "):
        attack(smooth(4), tmp_path, **change)


def test_progress_with_another_label_is_refused(tmp_path) -> None:
    """A label that was corrected: what stood as one class may fall as another."""
    net, x = smooth(4), images(6)
    y, few = net(x).argmax(1), {"version": "fast", "batch_size": 6, "progress": tmp_path, "show": False}
    autoattack(net, x, y, THREAT, **few)
    y[0] = (y[0] + 1) % 4
    with pytest.raises(ValueError, match="another evaluation, which differs in images"):
        autoattack(net, x, y, THREAT, **few)


def test_progress_of_another_network_is_refused(tmp_path) -> None:
    attack(smooth(4), tmp_path)
    with pytest.raises(ValueError, match="the network"):
        attack(smooth(4, seed=5), tmp_path)


class Misleading(torch.autograd.Function):
    """The same logits, and gradients that point nowhere."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.sin(1e4 * gradient)


@pytest.mark.slow
def test_progress_of_a_network_with_other_gradients_is_refused(tmp_path) -> None:
    """What was found with gradients that mislead must not stand once they are mended."""
    with contextlib.suppress(CheckFailed):
        attack(lambda x: smooth(4)(Misleading.apply(x)), tmp_path)
    with pytest.raises(ValueError, match="another evaluation, which differs in the network"):
        attack(lambda x: smooth(4)(x), tmp_path)


@pytest.mark.parametrize("alone", [False, True])
def test_progress_of_a_network_that_is_a_little_different_is_refused(tmp_path, alone: bool) -> None:
    """One bias moved by a hundredth: what stands on the one may fall on the other. Rounding alone is no difference."""
    net, x, shift = smooth(4), images(6), torch.tensor([-0.009, 0.0, 0.0, 0.0])
    near = copy.deepcopy(net)
    near[3].bias.data += shift
    of = (lambda n: lambda p: n(p)) if alone else (lambda n: n)  # a callable has no weights to tell it by
    attack(of(net), tmp_path)
    with pytest.raises(ValueError, match="differs in the network"):
        attack(of(near), tmp_path)
    if alone:
        attack(lambda p: net(p) * (1 + 1e-6), tmp_path)
    boxed = {"queries": 3, "progress": tmp_path / "box", "show": False}
    black_box(of(net), x, net(x).argmax(1), THREAT, **boxed)
    with pytest.raises(ValueError, match="differs in the network"):
        black_box(of(near), x, net(x).argmax(1), THREAT, **boxed)


def test_progress_of_fewer_queries_is_refused(tmp_path) -> None:
    net, x = smooth(4), images(6)
    black_box(net, x, net(x).argmax(1), THREAT, queries=5, progress=tmp_path, show=False)
    with pytest.raises(ValueError, match="differs in steps"):
        black_box(net, x, net(x).argmax(1), THREAT, queries=40, progress=tmp_path, show=False)


def test_progress_of_another_random_network_is_refused(tmp_path) -> None:
    short = {"version": "rand", "budget": Budget(samples=2)}
    attack(smooth(4), tmp_path, **short)
    with pytest.raises(ValueError, match="another evaluation, which differs in the network"):
        attack(smooth(4, seed=5), tmp_path, **short)


def test_progress_goes_on_in_another_order_and_not_with_other_pixels(tmp_path) -> None:
    net, x = smooth(4), images(18)
    y, ids = net(x).argmax(1), [str(i) for i in range(18)]

    def again(order: torch.Tensor, pixels: torch.Tensor):
        names = [ids[i] for i in order]
        return autoattack(
            net, pixels[order], y[order], THREAT, version="fast", ids=names, progress=tmp_path, batch_size=4, show=False
        )

    whole, order = again(torch.arange(18), x), torch.arange(18).flip(0)
    turned = again(order, x)
    assert torch.equal(turned.adversarial, whole.adversarial[order])
    assert sum(a.forwards for a in turned.attacks) == 0
    other = x.clone()
    other[15, 0, 0, 0] += 0.001
    with pytest.raises(ValueError, match="another evaluation"):
        again(order, other.clamp(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [350, 500, 900])
def test_a_kill_loses_at_most_one_batch(tmp_path, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    """Counted: what the second life begins although the first had begun it."""
    begun: set[tuple] = set()

    def start(slots: Slots, jobs: list) -> dict:
        begun.update((slots.name, slots.images.ids[image], attempt) for image, attempt in jobs)
        return original(slots, jobs)

    original = Slots.start
    monkeypatch.setattr(Slots, "start", start)
    with pytest.raises(KeyboardInterrupt):
        attack(Dies(budget), tmp_path, batch_size=4)
    first = begun.copy()
    begun.clear()
    attack(Dies(100_000), tmp_path, batch_size=4)
    assert len(first) > 8
    assert len(first & begun) <= 4


def noisy(draw: torch.Generator):
    net = smooth(4)
    return lambda x: net(x + 0.03 * torch.randn(x.shape, generator=draw))


def test_a_random_network_goes_on_too(tmp_path) -> None:
    """Its logits differ in every life; which images are right is what the first life saw."""
    x, draw = images(12), torch.Generator().manual_seed(0)
    y, how = smooth(4)(x).argmax(1), {"version": "rand", "budget": Budget(samples=2), "batch_size": 12, "show": False}

    def life(**more):
        return autoattack(noisy(draw), x, y, THREAT, progress=tmp_path, **how, **more)

    first, second = life(), life()
    assert torch.equal(first.clean, second.clean)
    assert torch.equal(first.robust, second.robust)
    assert torch.equal(first.adversarial, second.adversarial)
    assert [a.forwards for a in second.attacks] == [0, 0]
    with pytest.raises(ValueError, match="another evaluation"):
        life(seed=1)


RANDOM = """
import os, sys
import numpy as np, torch
from autolora import Threat, autoattack
from autolora.attacks.versions import Budget
from tests.attacks.nets import images, smooth

torch.distributed.init_process_group("gloo")
torch.set_num_threads(1)
rank = torch.distributed.get_rank()
net, x, draw = smooth(4), images(20), torch.Generator().manual_seed(rank)

def noisy(p):
    return net(p + 0.05 * torch.randn(p.shape, generator=draw))

y = net(x).argmax(1)
r = autoattack(
    noisy, x, y, Threat("linf", 0.05), version="rand", budget=Budget(samples=2), progress=sys.argv[1], batch_size=10
)
np.savez(f"{sys.argv[1]}/{rank}.end", clean=r.clean, robust=r.robust, adversarial=r.adversarial, fooled=r.fooled)
"""


@pytest.mark.slow
def test_processes_agree_on_a_random_network(tmp_path, root) -> None:
    """Each process draws noise of its own; one would attack an image that the other takes for wrong from the start."""
    (tmp_path / "run.py").write_text(RANDOM)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [*start, str(tmp_path / "run.py"), str(tmp_path)]
    ended = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    with np.load(tmp_path / "0.end.npz") as one, np.load(tmp_path / "1.end.npz") as other:
        assert all(np.array_equal(one[key], other[key]) for key in one)
        assert not (one["robust"] & ~one["clean"]).any()


def test_half_written_files_do_no_harm(tmp_path) -> None:
    whole = attack(smooth(4), tmp_path)
    (tmp_path / ".apgd-ce.0.000009.npz.123.part").write_bytes(b"half")
    assert torch.equal(attack(smooth(4), tmp_path).robust, whole.robust)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 100])
def test_files_cut_off_by_a_power_cut_are_found_again(tmp_path, keep: int) -> None:
    whole = attack(smooth(4), tmp_path)
    for path in tmp_path.glob("apgd-ce.*.npz"):
        path.write_bytes(path.read_bytes()[:keep])
    again = attack(smooth(4), tmp_path)
    assert torch.equal(again.robust, whole.robust)
    assert torch.equal(again.adversarial, whole.adversarial)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "precision"), [(1, "float32"), (2, "mixed")])
def test_killed_with_sigkill(root, processes: int, precision: str) -> None:
    """Also the shared run: two gloo processes started by torchrun end with the flags of one."""
    command = [sys.executable, "-m", "benchmarks.kill_and_resume", "--kills", "2"]
    command += ["--processes", str(processes), "--precision", precision, "--queries", "500"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "killed 1" in ended.stdout
    assert "0 flags and 0 pixels differ" in ended.stdout
