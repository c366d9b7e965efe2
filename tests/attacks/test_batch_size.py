"""How many images a forward takes on a CPU, by what a forward costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autolora.attacks.engine.prepare import default_batch, operations
from tests.export.nets import EveryLayer, Tiny


@pytest.mark.parametrize("net", [Tiny(), EveryLayer()])
def test_operations_are_those_that_torch_counts(net: nn.Module) -> None:
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(x)
    assert operations(net, x) == counter.get_total_flops()
    assert operations(lambda p: net(p), x) == counter.get_total_flops()
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(("width", "batch"), [(8, 64), (128, 16), (512, 8)])
def test_the_batch_keeps_a_cpu_busy(width: int, batch: int) -> None:
    weight, device = torch.rand(width, 3, 5, 5), torch.device("cpu")
    assert default_batch(device, nn.Conv2d(3, width, 5, padding=2), torch.rand(2, 3, 64, 64)) == batch
    assert default_batch(device, lambda p: F.conv2d(p, weight, padding=2), torch.rand(2, 3, 64, 64)) == batch


@pytest.mark.slow
def test_an_attack_on_layers_imports_no_compiler(root: Path) -> None:
    """torch's counter and its dispatch modes would hold 80 MB of it in every process."""
    code = (
        "import sys, torch; from autolora import Threat, autoattack; from tests.attacks.nets import images;"
        "net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 6), torch.nn.Flatten()).eval();"
        "x = images(8);"
        "autoattack(net, x, net(x).argmax(1), Threat('linf', 0.1), version='fast', show=False);"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
