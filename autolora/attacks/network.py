"""The attacked network as the attacks see it: logits and input gradients, always in one batch shape, counted.

On a CPU an image's logits do not depend on its place in a batch or on its neighbours, only on the shape of the batch; so
with one shape an image's fate does not depend on which other images are attacked with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]  # logits [b,c] -> one value per row [b]


class Network:
    """`forwards` counts in units of one image forward, F; an input gradient counts as another one."""

    def __init__(self, model: Callable[[Tensor], Tensor], batch: int) -> None:
        self.model, self.batch, self.forwards = model, batch, 0

    def logits(self, x: Tensor) -> Tensor:  # [batch,...] -> [batch,classes]
        self.forwards += len(x)
        with torch.no_grad():
            return self.model(x).detach().float()

    def gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, loss and the gradient of the loss, for every image of one full batch."""
        self.forwards += 2 * len(x)
        point = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(point).float()
            values = loss(logits)
            (gradient,) = torch.autograd.grad(values.sum(), point)
        return logits.detach(), values.detach(), gradient

    def gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the gradient of each logit: [b,c], [b,c,...]."""
        point = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(point).float()
            columns = [torch.autograd.grad(z, point, retain_graph=True)[0] for z in logits.sum(0)]
        self.forwards += (1 + len(columns)) * len(x)
        return logits.detach(), torch.stack(columns, 1)

    def all_logits(self, x: Tensor, device: Any = None) -> Tensor:
        """Logits of any number of images, in padded batches of the one shape."""
        return torch.cat([self._padded(part.to(device)) for part in x.split(self.batch)])

    def _padded(self, x: Tensor) -> Tensor:
        rows = torch.arange(self.batch, device=x.device) % len(x)
        return self.logits(x[rows])[: len(x)]


def column(values: Tensor, like: Tensor) -> Tensor:
    """[b] -> [b,1,1,1], to be broadcast over images."""
    return values.view(-1, *[1] * (like.dim() - 1))


def lengths(offset: Tensor, norm: str) -> Tensor:
    """The norm of each perturbation: [b,...] -> [b]."""
    flat = offset.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().sum(1)
