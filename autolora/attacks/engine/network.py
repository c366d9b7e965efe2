"""The attacked network as the attacks see it: logits and input gradients, always in one batch shape, counted.

On a CPU an image's logits do not depend on its place in a batch or on its neighbours, only on the shape of the batch;
so with one shape an image's fate does not depend on which other images are attacked with it. (With AVX-512 a linear
layer of an odd number of inputs rounds differently from place to place.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GROUP = 32  # images
STEEP = 1e15  # for an infinite slope; its square is finite
Loss = Callable[[Tensor, slice], Tensor]  # logits [b,c] of these rows -> one value for each [b]


class Network:
    """Every forward takes `batch` images: more are taken in parts, and the last part is filled up with copies.

    `forwards` counts in F, one forward of one image, copies included; those of a network `beside` this one are its own.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], batch: int) -> None:
        self.model, self.batch, self.spent = model, batch, [0]

    @property
    def forwards(self) -> int:
        return self.spent[0]

    def beside(self, model: Callable[[Tensor], Tensor]) -> Network:
        """Another network in the same batches, whose forwards count here."""
        other = Network(model, self.batch)
        other.spent = self.spent
        return other

    def logits(self, x: Tensor) -> Tensor:  # [n,...] -> [n,classes]
        with torch.no_grad():
            return joined([self.model(self._filled(part)).float()[: len(part)] for part, _ in self._parts(x)])

    def gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, loss and the gradient of the loss in each image; a gradient counts as one more F."""
        found = [self.gradient_of(part, rows, loss) for part, rows in self._parts(x)]
        logits, values, gradients = (joined(parts) for parts in zip(*found))
        return logits, values, gradients

    def _parts(self, x: Tensor) -> list[tuple[Tensor, slice]]:
        return [(x[i : i + self.batch], slice(i, i + self.batch)) for i in range(0, len(x), self.batch)]

    def _filled(self, x: Tensor) -> Tensor:
        self.spent[0] += self.batch
        return x if len(x) == self.batch else x[torch.arange(self.batch, device=x.device) % len(x)]

    def gradient_of(self, x: Tensor, rows: slice, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Of one part of the batch."""
        self.spent[0] += self.batch
        point = self._filled(x.detach()).detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(point).float()[: len(x)]
            values = loss(logits, rows)
            gradient = _input_gradient(values.sum(), point)
        return logits.detach(), values.detach(), gradient[: len(x)]

    def gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the gradient of each of them: [b,c], [b,c,...]."""
        found = [self._gradients(part) for part, _ in self._parts(x)]
        logits, gradients = (joined(parts) for parts in zip(*found))
        return logits, gradients

    def _gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        point = self._filled(x.detach()).detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.model(point).float()
            each = [_input_gradient(z, point, again=True) for z in logits.sum(0)]
        self.spent[0] += self.batch * len(each)
        return logits.detach()[: len(x)], torch.stack(each, 1)[: len(x)]

    def all_logits(self, x: Tensor, device: torch.device | None = None) -> Tensor:
        """Logits of images that may lie elsewhere, and be too many for the device."""
        return joined([self.logits(part.to(device or x.device)) for part in x.split(self.batch)])


class Averaged(Network):
    """A network that answers at random, judged by the mean of `samples` passes."""

    def __init__(self, model: Callable[[Tensor], Tensor], batch: int, samples: int) -> None:
        super().__init__(model, batch)
        self.samples = samples

    def logits(self, x: Tensor) -> Tensor:
        total = super().logits(x)
        for _ in range(self.samples - 1):
            total = total + super().logits(x)
        return total / self.samples

    def gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        logits, values, gradients = super().gradient(x, loss)
        for _ in range(self.samples - 1):
            more = super().gradient(x, loss)
            logits, values, gradients = logits + more[0], values + more[1], gradients + more[2]
        return logits / self.samples, values / self.samples, gradients / self.samples


def _input_gradient(value: Tensor, point: Tensor, *, again: bool = False) -> Tensor:
    """Zeros where none arrives, which check 8 is about; a pixel without a slope (a root at 0) spoils no other."""
    if not value.requires_grad:
        return torch.zeros_like(point)
    (gradient,) = torch.autograd.grad(value, point, retain_graph=again)
    return gradient.nan_to_num(0.0, STEEP, -STEEP)


def predicted(logits: Tensor) -> Tensor:
    """The class; -1, which is no label, where the network answers NaN."""
    return logits.argmax(1).masked_fill_(logits.isnan().any(1), -1)


def fooled(logits: Tensor, y: Tensor, points: Tensor) -> Tensor:
    """Which points are misclassified; a point that is no image is none."""
    return (predicted(logits) != y) & points.flatten(1).sum(1).isfinite()


def joined(parts: Sequence[Tensor]) -> Tensor:
    """torch.cat copies a single part too."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def in_groups(act: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """act(*rows), on a CPU a few rows at a time: what it makes in between then stays in the processor's cache."""
    size = GROUP if rows[0].device.type == "cpu" else max(len(rows[0]), 1)
    return joined([act(*group) for group in zip(*(r.split(size) for r in rows))])


def column(values: Tensor, like: Tensor) -> Tensor:
    """[b] -> [b,1,1,1], to be broadcast over images."""
    return values.view(-1, *[1] * (like.dim() - 1))


def lengths(offset: Tensor, norm: str) -> Tensor:
    """The norm of each perturbation: [b,...] -> [b]."""
    flat = offset.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().sum(1)


def replaced(old: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """`new` in these rows, `old` in the others. On a CPU torch.where over an image costs as much as a small network."""
    if old.device.type != "cpu":
        return torch.where(column(rows, old), new, old)
    index = rows.nonzero().squeeze(1)
    return old.index_copy(0, index, new.index_select(0, index)) if len(index) else old


def put(old: Tensor, rows: Tensor, new: Tensor, source: Tensor | None = None) -> Tensor:
    """The same in place, for an `old` that nobody else holds; each row may have a `source` row of its own in `new`."""
    if old.device.type != "cpu":
        return torch.where(column(rows, old), new if source is None else new[source], old)
    index = rows.nonzero().squeeze(1)
    chosen = index if source is None else source[index]
    return old.index_copy_(0, index, new.index_select(0, chosen)) if len(index) else old


def positive(a: Tensor) -> Tensor:
    """1.0 where a > 0, else 0.0: a mask to multiply with, which is exact and many times faster than torch.where."""
    return torch.gt(a, 0, out=torch.empty_like(a))
