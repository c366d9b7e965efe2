"""Training only the prominent weights (CURE: Gowda, Zonooz & Arani, 2024): conserve, update, revise.

    R = 0.1 |grad_w CE(x)| + 0.9 |grad_w CE(x~)|         in each layer the 30 % of entries with the smallest R stay
    L + KL(sg p_rev || p) + KL(sg p~_rev || p~)          p_rev: of the revision, on the same batch
    theta_rev <- d theta_rev + (1 - d) theta             after a fifth of the steps; d = min(t / (t + 1), 0.999)

theta ships. The layers are convolutions and linear ones, all but the head. What stays is put back after the step, since
momentum and weight decay would move it too. The released code ranks the sum with its signs, in some layers alone; this
is the text's. A method that shows the network attacked images alone has their half of R and of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autolora.common import distributed

SHARE = 0.3  # of a layer's entries, that stay
NATURAL = 0.1  # the natural images' part of prominence; the rest is the attacked ones'
WEIGHT = 1.0  # of the distance from the revision
CHANCE, DECAY = 0.2, 0.999  # of a revision after a step, and its slowest pace


class Revision(nn.Module):
    """theta_rev: a slow mean of the weights; batch-norm statistics are the network's own."""

    count: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = [name for name, _ in model.named_parameters()]
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for i, parameter in enumerate(model.parameters()):
            self.register_buffer(str(i), parameter.detach().clone())

    def weights(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(str(i)) for i, name in enumerate(self.names)}

    @torch.no_grad()
    def follow(self, model: nn.Module, draw: torch.Generator) -> None:
        """After a step, by chance."""
        if torch.rand((), generator=draw).item() >= CHANCE:
            return
        count = int(self.count)
        pace = 1 - min(count / (count + 1), DECAY)
        for mean, parameter in zip(self.weights().values(), model.parameters()):
            mean.lerp_(parameter, pace)
        self.count += 1


def prominence(losses: list[tuple[float, Tensor]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """R of each layer, from this process' part of the losses; the same in every process."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for share, loss in losses:
        found = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(weights, found) if gradient is not None}
        distributed.add(gradients.values())  # before their absolute values
        for name, gradient in gradients.items():
            total[name].add_(gradient.abs(), alpha=share)
    return total


def stays(prominent: Tensor) -> Tensor:
    """bool, of a layer's entries: the smallest, so many that one at least is updated; of equal ones the first."""
    flat = prominent.flatten()
    count = round(SHARE * (len(flat) - 1))
    least = flat.kthvalue(count + 1).values
    mask = flat < least
    mask[(flat == least).nonzero().flatten()[: count - int(mask.sum())]] = True
    return mask.view_as(prominent)


@contextmanager
def conserved(weights: Mapping[str, Tensor], prominent: Mapping[str, Tensor]) -> Iterator[None]:
    """A step within moves the prominent entries alone."""
    kept = [(weight, stays(prominent[name]), weight.detach().clone()) for name, weight in weights.items()]
    for weight, mask, _ in kept:
        if weight.grad is not None:
            weight.grad.masked_fill_(mask, 0)
    yield
    with torch.no_grad():
        for weight, mask, before in kept:
            weight.copy_(torch.where(mask, before, weight))
