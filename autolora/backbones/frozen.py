"""A network at rest: what an attack asks of it costs no weight gradients and changes nothing in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Parameters without gradients and every module in eval, for the length of an attack; all of it put back after.

    An input gradient then costs no weight gradients, and batch-norm statistics do not move.
    """
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        model.eval()
        yield model
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """These modules in eval, parameters as they are."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
