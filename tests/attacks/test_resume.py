"""A run that dies goes on where it stopped, alone or in company, and ends as if nothing had happened."""

import subprocess
import sys

import pytest
import torch

from autolora import Threat, autoattack
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


@pytest.mark.parametrize("change", [{"seed": 1}, {"version": "rand"}, {"batch_size": 5}, {"precision": "fast"}])
def test_progress_of_another_evaluation_is_refused(tmp_path, change: dict) -> None:
    attack(smooth(4), tmp_path)
    with pytest.raises(ValueError, match="another evaluation"):
        attack(smooth(4), tmp_path, **change)


def test_progress_of_another_network_is_refused(tmp_path) -> None:
    attack(smooth(4), tmp_path)
    with pytest.raises(ValueError, match="the network"):
        attack(smooth(4, seed=5), tmp_path)


def test_half_written_files_do_no_harm(tmp_path) -> None:
    whole = attack(smooth(4), tmp_path)
    (tmp_path / ".apgd-ce.0.000009.npz.123.part").write_bytes(b"half")
    assert torch.equal(attack(smooth(4), tmp_path).robust, whole.robust)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_with_sigkill(root, processes: int) -> None:
    """Also the shared run: two gloo processes started by torchrun end with the flags of one."""
    command = [sys.executable, "-m", "benchmarks.kill_and_resume", "--kills", "2", "--processes", str(processes)]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "killed 1" in ended.stdout
    assert "0 flags and 0 pixels differ" in ended.stdout
