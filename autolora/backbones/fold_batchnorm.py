"""A copy of a network for attacks: frozen, in eval, batch norms folded into the convolutions before them.

    W' = W * gamma / sqrt(var + eps),   b' = beta + (b - mean) * gamma / sqrt(var + eps)

In eval a batch norm is a scale and a shift, so the copy computes the same function (up to rounding) with less to do in
each of an attack's steps. What is not folded shares its memory with the network; `refresh` brings the rest up to date.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

Pair = tuple[nn.Conv2d, nn.BatchNorm2d]


class Folded:
    """`view(x)` is the network's function at the last `refresh()`."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.view = _twin(model)
        originals, copies = dict(model.named_modules()), dict(self.view.named_modules())
        self.pairs: list[tuple[Pair, nn.Conv2d]] = []
        for conv, norm in foldable(model, example):
            source = cast(Pair, (originals[conv], originals[norm]))
            self.pairs.append((source, _without_norm(cast(nn.Conv2d, copies[conv]), source[0])))
            _replace(self.view, norm, _after(originals[norm]))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        for (conv, norm), target in self.pairs:
            _fill(target, conv, norm)


def has_bfloat16(device: torch.device) -> bool:
    """In its instructions: emulated, it would be slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and bool(supported())


def _fill(target: nn.Conv2d, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    weight, bias = folded(conv, norm)
    target.weight.copy_(weight)
    cast(Tensor, target.bias).copy_(bias)


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = scale * norm.weight
    bias = -mean * scale if conv.bias is None else (conv.bias - mean) * scale
    return conv.weight * scale.view(-1, 1, 1, 1), bias + norm.bias if norm.affine else bias


@torch.no_grad()
def foldable(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """(convolution, batch norm) by name, where the norm reads the very output of the convolution and nobody else does.

    Found by watching one forward of a copy with disturbed norms, then checked: folded, it must give the same logits,
    else nothing is folded. (Fresh norms do nothing, so that a wrong fold would show only later.)
    """
    model = _disturbed(model)
    made: dict[int, tuple[str, Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    uses: dict[str, int] = {}

    def after(name: str, module: nn.Module):
        def hook(_, inputs: tuple, output: object) -> None:
            for value in inputs:
                if isinstance(value, Tensor) and id(value) in made:
                    source = made[id(value)][0]
                    uses[source] = uses.get(source, 0) + 1
                    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                        pairs.append((source, name))
            if type(module) is nn.Conv2d and isinstance(output, Tensor):
                made[id(output)] = (name, output)  # held, so that no other tensor gets its id

        return hook

    twin = _twin(model)
    leaves = [(n, m) for n, m in twin.named_modules() if not any(True for _ in m.children()) or _is_norm(m)]
    handles = [module.register_forward_hook(after(name, module)) for name, module in leaves]
    try:
        expected = twin(example)
    finally:
        for handle in handles:
            handle.remove()
    norms = [norm for _, norm in pairs]
    pairs = [(conv, norm) for conv, norm in pairs if uses[conv] == 1 and norms.count(norm) == 1]
    return pairs if pairs and _same(model, pairs, example, expected) else []


def _same(model: nn.Module, pairs: list[tuple[str, str]], example: Tensor, expected: Tensor) -> bool:
    modules, twin = dict(model.named_modules()), _twin(model)
    for conv, norm in pairs:
        target = _without_norm(cast(nn.Conv2d, dict(twin.named_modules())[conv]), cast(nn.Conv2d, modules[conv]))
        _fill(target, cast(nn.Conv2d, modules[conv]), cast(nn.BatchNorm2d, modules[norm]))
        _replace(twin, norm, _after(modules[norm]))
    return bool((twin(example) - expected).abs().max() <= 1e-3 * expected.abs().max())


def _disturbed(model: nn.Module) -> nn.Module:
    copied, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for norm in copied.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                if tensor is not None:
                    tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return copied


def _twin(model: nn.Module) -> nn.Module:
    """A frozen copy in eval that shares all memory with the network."""
    memo: dict[int, Tensor] = {id(buffer): buffer.detach() for buffer in model.buffers()}
    memo |= {id(parameter): nn.Parameter(parameter.detach(), False) for parameter in model.parameters()}
    return copy.deepcopy(model, memo).eval()


def _without_norm(target: nn.Conv2d, source: nn.Conv2d) -> nn.Conv2d:
    """Own memory for the folded weight, and a bias."""
    target.weight = nn.Parameter(torch.empty_like(source.weight), requires_grad=False)
    target.bias = nn.Parameter(source.weight.new_zeros(source.out_channels), requires_grad=False)
    return target


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d)


def _after(norm: nn.Module) -> nn.Module:
    """What a norm does beside normalising: timm's BatchNormAct2d also drops and activates."""
    rest = [copy.deepcopy(child) for child in norm.children()]
    return (nn.Sequential(*rest) if rest else nn.Identity()).eval()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
