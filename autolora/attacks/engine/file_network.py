"""An ONNX file that is attacked: onnxruntime answers for the file itself, and its torch copy says where to go.

    network = FileNetwork("model.onnx", normalise=(mean, std))
    network(x)          # the file's logits; their gradient is that of the copy
    network.quick(x)    # the copy's logits where a gradient is asked for: faster, and not the judge

An attack runs on `quick`; each success is looked at again by the file, in onnxruntime, and only then counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from autolora.attacks.engine.network import joined
from autolora.attacks.engine.onnx_network import ALIKE, Derivable, session
from autolora.export.conversion import noise
from autolora.export.gradient_graph import derived
from autolora.export.operators.shapes import NARROW
from autolora.export.runtime import logits, onnxruntime
from autolora.export.torch_copy import QUANTISED, TorchCopy

ROUNDED = 0.05  # of the largest logit, by which half of the images may differ where activations have few bits


class Agreement(NamedTuple):
    """The copy against the file, at the start."""

    difference: float  # of a logit, the largest
    allowed: float
    flips: int  # labels
    n: int

    @property
    def fine(self) -> bool:
        return self.difference <= self.allowed

    def as_record(self) -> dict[str, Any]:
        return {"difference": float(f"{self.difference:.1e}"), "allowed": float(f"{self.allowed:.1e}")} | {
            "label_flips": self.flips,
            "n": self.n,
        }


class FileNetwork(nn.Module):
    """From [0,1] pixels [n,c,h,w] to the logits of the file.

    `normalise` is (mean, std) for files that expect it done; `channels_last` for float images [n,h,w,c].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        normalise: tuple[Sequence[float], Sequence[float]] | None = None,
        channels_last: bool = False,
        gradients: bool = True,
    ) -> None:
        super().__init__()
        content = model.SerializeToString()
        self.session = session(content)
        self.part = _part(model, self.session)
        self.narrow = _narrow(model.graph)
        self.normalised, self.channels_last = normalise is not None, channels_last
        mean, std = normalise or ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.copy = TorchCopy(model) if gradients else None
        self.derivable: Callable[[Tensor], Tensor] | None = None  # the copy's slope, faster
        self.eval()

    @property
    def version(self) -> str:
        return onnxruntime.__version__

    def forward(self, x: Tensor) -> Tensor:
        answered = self.answers(x)
        if self.copy is None or not (x.requires_grad and torch.is_grad_enabled()):
            return answered
        soft = self.quick(x)
        return soft + (answered - soft).detach()

    def quick(self, x: Tensor) -> Tensor:
        if self.copy is None or not (x.requires_grad and torch.is_grad_enabled()):
            return self.answers(x)
        return self._in_parts(self.derivable or self.copy, self._taken(x))

    @torch.no_grad()
    def answers(self, x: Tensor) -> Tensor:
        """Of the file itself."""
        return self._in_parts(self._run, self._taken(x.detach()))

    def _run(self, taken: Tensor) -> Tensor:
        return torch.from_numpy(logits(self.session, taken.numpy(), len(taken)))

    def _taken(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std if self.normalised else x
        return x.permute(0, 2, 3, 1) if self.channels_last else x

    def _in_parts(self, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.part is None:
            return act(x)
        rows = torch.arange(-(-len(x) // self.part) * self.part) % len(x)
        return joined([act(part) for part in x[rows].split(self.part)])[: len(x)]

    def copied(self, x: Tensor) -> Tensor:
        """What the torch copy says, also where no gradient is asked for."""
        assert self.copy is not None
        return self._in_parts(self.copy, self._taken(x))

    def agreement(self, x: Tensor) -> Agreement:
        """On these images."""
        assert self.copy is not None
        copied = self.copied(x).detach().numpy()
        answered = self.answers(x).numpy()
        apart = np.abs(copied - answered).max(1)
        few_bits = self.copy.quantised or self.copy.narrow
        allowed = ROUNDED * float(np.abs(answered).max()) if few_bits else 10 * noise(answered)
        return Agreement(
            float(np.median(apart) if few_bits else apart.max()),
            allowed,
            int((copied.argmax(1) != answered.argmax(1)).sum()),
            len(x),
        )

    def hasten(self, model: onnx.ModelProto, x: Tensor) -> bool:
        """Take the derivative as a second graph in onnxruntime, where there is one that comes to the same slope."""
        if self.copy is None or self.copy.quantised or self.copy.narrow or self.part is not None or self.channels_last:
            return False
        expected = _slope(self.quick, x)
        with suppress(Exception):  # onnxruntime has one class per kind of fault, and no common one
            files = [session(graph.SerializeToString()) for graph in derived(model)]
            self.derivable = Derivable(*files)
            found = _slope(self.quick, x)
            if (found - expected).norm() <= ALIKE * expected.norm():
                return True
        self.derivable = None
        return False


def _slope(way: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of all logits, each with a weight of its own."""
    point = x.clone().requires_grad_(True)
    with torch.enable_grad():
        answered = way(point)
        value = (answered * torch.linspace(-1, 1, answered.shape[1])).sum()
    return torch.autograd.grad(value, point)[0]


def _narrow(graph: onnx.GraphProto) -> list[str]:
    """In what less than float32 a file computes, by its image, constants, casts and quantised nodes."""
    kinds = {each.type.tensor_type.elem_type for each in graph.input} | {t.data_type for t in graph.initializer}
    kinds |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    kinds |= {a.t.data_type for node in graph.node for a in node.attribute if a.HasField("t")}
    named = [onnx.TensorProto.DataType.Name(kind).lower() for kind in sorted(NARROW) if kind in kinds]
    return named + (["8 bits"] if any(node.op_type in QUANTISED for node in graph.node) else [])


def _part(model: onnx.ModelProto, opened: Any) -> int | None:
    """How many images are asked about at once: as many as the file takes.

    Scales that are found for a whole batch would make an image's logits depend on its neighbours: then one.
    """
    fixed = opened.get_inputs()[0].shape[0]
    if isinstance(fixed, int) and fixed > 0:
        return fixed
    return 1 if any(node.op_type.startswith("DynamicQuantize") for node in model.graph.node) else None
