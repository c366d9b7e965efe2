"""What every evaluation does first: the network at rest, float32 meaning float32, and the size of a forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from autolora.backbones.frozen import frozen

BUSY = 1e9  # floating point operations of a forward, about: beyond it a CPU does no more of them a second


def likely(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of each image, most likely first: [n,classes-1]."""
    return logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]


def device_of(model: Any, x: Any = None) -> torch.device:
    """Where the model lives; where it has no parameters, where the images are."""
    if isinstance(model, nn.Module):
        for tensor in [*model.parameters(), *model.buffers()]:
            return tensor.device
    return x.device if isinstance(x, Tensor) else torch.device("cpu")


def at_rest(model: Any) -> Any:
    """Parameters without gradients, for the length of an attack."""
    return frozen(model) if isinstance(model, nn.Module) else nullcontext()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 inside float32, for the length of the attack: the reported number is of float32.

    cuDNN's older switch moves along: while the two say different things, torch's own exporter fails on asking for it.
    """
    kept, older = [(switch, switch.fp32_precision) for switch in switches()], _older_switch()
    try:
        _set_older_switch(to=False)
        for switch, _ in kept:
            switch.fp32_precision = "ieee"
        yield
    finally:
        _set_older_switch(to=older)
        for switch, value in kept:
            switch.fp32_precision = value


def _older_switch() -> bool:
    """Where the caller has set the newer ones beside it, it cannot be asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are newer ones
        try:
            return torch.backends.cudnn.allow_tf32
        except RuntimeError:
            return False


def _set_older_switch(*, to: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = to


def switches() -> list[Any]:
    """Where torch keeps in what precision float32 is multiplied; what says nothing of its own does as the one above."""
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    parts = ((cudnn, "conv"), (cudnn, "rnn"), (mkldnn, "conv"), (mkldnn, "rnn"), (mkldnn, "matmul"))
    below = [getattr(library, part) for library, part in parts]
    return [torch.backends, cudnn, torch.backends.cuda.matmul, *below]


def default_batch(device: torch.device, model: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """Images per forward, one constant per network and kind of device: the flags belong to it.

    At the end of an attack it is filled up with copies. So on a CPU it is no larger than keeps the processor busy: 64
    for a network of a few MFLOP (or of which nothing is known), 8 for one of hundreds.
    """
    if device.type != "cpu":
        return 512
    each = operations(model, example[:1])
    return next((batch for batch in (8, 16, 32) if batch * each >= BUSY), 64)


def operations(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Of a forward, in its convolutions and linear layers; where there are none, as torch counts."""
    total = 0

    def count(layer: nn.Module, inputs: object, made: Tensor) -> None:
        nonlocal total
        total += 2 * made.numel() * cast(Tensor, layer.weight)[0].numel()

    layers = model.modules() if isinstance(model, nn.Module) else []
    hooks = [layer.register_forward_hook(count) for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return total or _counted(model, x)


def _counted(model: Callable[[Tensor], Tensor], x: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # with it come 80 MB

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()
