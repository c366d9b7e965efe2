"""The folded copy computes the network's function, follows it, and refuses what it cannot fold."""

import pytest
import torch
from torch import nn

from autolora.backbones.fold_batchnorm import Folded
from tests.oracle.steps import Small


class Tapped(nn.Module):
    """A convolution read by a norm and, unseen by any hook, by the sum as well: not to be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.head((self.norm(x) + x).mean((2, 3)))


def trained(model):
    torch.manual_seed(0)
    for _ in range(3):
        model(torch.rand(8, 3, 8, 8))
    return model.eval()


@pytest.mark.parametrize(("make", "pairs"), [(Small, 3), (Tapped, 0)])
def test_the_copy_is_the_same_function_before_and_after_a_step(make, pairs):
    x, model = torch.rand(4, 3, 8, 8), trained(make())
    folded = Folded(model, x)
    assert len(folded.pairs) == pairs
    assert torch.allclose(folded.view(x), model(x), atol=1e-5)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(0.05 * torch.rand_like(tensor))
    folded.refresh()
    assert torch.allclose(folded.view(x), model(x), atol=1e-5)


def test_the_copy_takes_no_gradient_and_leaves_the_network_alone():
    x, model = torch.rand(4, 3, 8, 8), Small().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = Folded(model, x)
    folded.view(x.requires_grad_(True)).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
