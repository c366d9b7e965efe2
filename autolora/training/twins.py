"""TWINS' frozen half: the pre-trained running statistics of batch norms, and an affine copy of its own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autolora.common.errors import BadArgument
from autolora.training.branch import Statistics


def check_norms(model: nn.Module) -> None:
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise BadArgument("method", "twins", "the network has no batch norm, which TWINS is made of")


class Norms(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_norms(model)
        norms = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
        self.names = [f"{n}.{p}" for n, m in norms for p, _ in m.named_parameters(recurse=False)]
        self.affine = nn.ParameterList([model.get_parameter(n).detach().clone() for n in self.names])
        self.pretrained = Statistics(model, _BatchNorm)

    def weights(self) -> dict[str, Tensor]:
        return {**dict(zip(self.names, self.affine)), **self.pretrained.values()}
