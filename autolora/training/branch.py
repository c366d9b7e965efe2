"""The low-rank branch: two views of one network, and the merge that leaves none.

    W_nat = W + (1/r) * reshape(B @ A, W.shape)          A ~ N(0, 1), B = 0: the branch starts as no branch

For a convolution kh x kw, Cin -> Cout with g groups A is (r*kh, Cin*kw) and B is (Cout/g*kh, r*kh), so that B @ A has
as many elements as W; for a linear layer A is (r, in) and B is (out, r). Weights are replaced in the call
(`torch.func.functional_call`), never in the network: any module whose layers carry a `weight` can have a branch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from autolora.backbones.layers import block_layers, head_names
from autolora.common.errors import BadArgument, Words
from autolora.common.files import replacing, weights_sha256
from autolora.training.axes import RANK

Layers = list[tuple[str, nn.Conv2d | nn.Linear]]


class Statistics(nn.Module):
    """Running statistics of one's own: they replace the network's in a call, and move in its place. Of batch norm, and
    of instance norm where it tracks some."""

    def __init__(self, model: nn.Module, norm: type[nn.Module] = _NormBase) -> None:
        super().__init__()
        norms = [(n, m) for n, m in model.named_modules() if isinstance(m, norm)]
        self.names = [f"{n}.{b}" for n, m in norms for b, _ in m.named_buffers(recurse=False)]
        for i, name in enumerate(self.names):
            self.register_buffer(str(i), model.get_buffer(name).clone())

    def values(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(str(i)) for i, name in enumerate(self.names)}


class Branch(nn.Module):
    """A and B for each of some layers of a network."""

    def __init__(
        self,
        layers: Layers,
        rank: int = RANK,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_layers(layers)
        self.rank = rank
        self.names = [name for name, _ in layers]
        self.shapes = [layer.weight.shape for _, layer in layers]
        sizes = [factor_shapes(layer, rank) for _, layer in layers]
        self.A = nn.ParameterList([torch.randn(a, generator=generator) for a, _ in sizes])
        self.B = nn.ParameterList([torch.zeros(b) for _, b in sizes])

    def deltas(self) -> dict[str, Tensor]:
        """BA / r of each layer, under the name of the weight that it is added to."""
        factors = zip(self.names, self.shapes, self.A, self.B)
        return {f"{name}.weight": change(A, B, shape, self.rank) for name, shape, A, B in factors}

    def factors(self) -> dict[str, Tensor]:
        """layer.A and layer.B by name: what branch.safetensors holds."""
        pairs = zip(self.names, self.A, self.B)
        return {f"{n}.{w}": t.detach() for n, A, B in pairs for w, t in (("A", A), ("B", B))}


def change(A: Tensor, B: Tensor, shape: Sequence[int], rank: int) -> Tensor:
    """BA / r in the shape of the weight: nobody else multiplies them."""
    return (B @ A).view(*shape) / rank


def factor_shapes(layer: nn.Conv2d | nn.Linear, rank: int = RANK) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes of A and B."""
    if isinstance(layer, nn.Linear):
        return (rank, layer.in_features), (layer.out_features, rank)
    kh, kw = layer.kernel_size
    return (rank * kh, layer.in_channels * kw), (layer.out_channels // layer.groups * kh, rank * kh)


def check_layers(layers: Layers) -> None:
    if not layers:
        raise ValueError("the network has no convolution or linear layer between stem and head: nothing to branch")


def all_layers(model: nn.Module) -> Layers:
    """[paper] every convolution and linear layer of the blocks; not the stem, not the head."""
    return block_layers(model)


def last_blocks(model: nn.Module) -> Layers:
    """[released code] only the layers in the last block of each stage: 8 of 19 in ResNet-18, 12 of 52 in ResNet-50."""
    layers = block_layers(model)
    blocks = {name: block_of(model, name) for name, _ in layers}
    last: dict[str, str] = {}
    for block in filter(None, blocks.values()):
        last[block.rpartition(".")[0]] = block  # stage -> its last block: layers come in the order of the network
    return [(name, layer) for name, layer in layers if blocks[name] in last.values()]


def block_of(model: nn.Module, layer: str) -> str | None:
    """The block that a layer lies in: the outermost numbered child of a container that holds no blocks itself."""
    module, path = model, []
    for part in layer.split("."):
        parent, module = module, getattr(module, part)
        path.append(part)
        numbered = isinstance(parent, nn.Sequential | nn.ModuleList)
        if numbered and not isinstance(module, nn.Sequential | nn.ModuleList) and not hasattr(module, "blocks"):
            return ".".join(path)
    return None


def head_parameters(model: nn.Module) -> set[str]:
    prefixes = tuple(f"{name}." for name in head_names(model))
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def natural_weights(model: nn.Module, branch: Branch, head: set[str]) -> dict[str, Tensor]:
    """sg(theta1) + BA, to be called with: gradients reach A, B and the head, and nothing else."""
    weights = {n: p.detach() for n, p in model.named_parameters() if n not in head}
    return weights | {n: weights[n] + delta for n, delta in branch.deltas().items()}


@torch.no_grad()
def add_branch(model: nn.Module, deltas: Mapping[str, Tensor], alpha: float) -> nn.Module:
    """A copy with theta + alpha * BA in its dense weights, in eval: it costs the same to run for every alpha."""
    merged = copy.deepcopy(model).eval()
    tensors = {**dict(merged.named_parameters()), **dict(merged.named_buffers())}
    if unknown := set(deltas) - set(tensors):
        raise ValueError(f"the branch was made for another network: it has no {', '.join(sorted(unknown))}")
    if alpha != 0:
        for name, delta in deltas.items():
            tensors[name].add_(delta.to(tensors[name]), alpha=alpha)
    return merged.requires_grad_(False)


class TwoViews(Protocol):
    """What fine-tuning gives (training.Tuned), as far as a merge looks at it."""

    model: nn.Module
    branch: Branch | None
    method: str


def merge(tuned: TwoViews, alpha: float = 0.0) -> nn.Module:
    """theta(alpha) = theta1 + alpha * BA: 0 is the robust network of the paper, 1 the natural branch."""
    if not isinstance(alpha, Real) or not 0 <= alpha <= 1:
        raise BadArgument("alpha", alpha, "expected a number from 0 to 1")
    if not hasattr(tuned, "branch"):
        raise BadArgument("tuned", Words(f"a {type(tuned).__name__}"), "expected what autolora.finetune returns")
    if tuned.branch is None and alpha != 0:
        raise BadArgument("alpha", alpha, f"method {tuned.method} trains no branch: only 0 exists")
    return add_branch(tuned.model, tuned.branch.deltas() if tuned.branch else {}, alpha)


def save_branch(branch: Branch | None, path: str | Path) -> str:
    """A and B of each layer in one safetensors file, empty without a branch. Returns the sha256 of its weights."""
    factors = {n: t.cpu().contiguous() for n, t in branch.factors().items()} if branch else {}
    digest = weights_sha256(factors)
    shapes = {n: list(s) for n, s in zip(branch.names, branch.shapes)} if branch else {}
    record = {"rank": branch.rank if branch else RANK, "shapes": shapes, "weights_sha256": digest}
    with replacing(path) as part:
        safetensors.torch.save_file(factors, part, metadata={"autolora": json.dumps(record, sort_keys=True)})
    return digest


def load_deltas(path: str | Path) -> dict[str, Tensor]:
    """BA / r of each layer from a saved branch, ready for `add_branch`."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        record = json.loads((file.metadata() or {}).get("autolora", "{}"))
    factors = safetensors.torch.load_file(path)
    if weights_sha256(factors) != record.get("weights_sha256"):
        raise ValueError(f"{path}: the factors are not those that were saved (sha256 differs)")
    pairs = {name: (factors[f"{name}.A"], factors[f"{name}.B"]) for name in record["shapes"]}
    return {f"{n}.weight": change(A, B, record["shapes"][n], record["rank"]) for n, (A, B) in pairs.items()}
