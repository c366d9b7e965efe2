"""Several processes that compute what one would: torch.distributed underneath, gloo on CPUs, NCCL on GPUs.

    torchrun --nproc-per-node 2 -m stages.finetune

Each process takes every n-th image of the global batch; losses are divided by the global batch, so gradients add up.
Batch-norm statistics are those of the global batch: while `global_norms()` is on, every `F.batch_norm` in training sums
over all processes, forwards and backwards, in any network; on GPUs as torch's SyncBatchNorm does, which refuses CPUs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

CALL = inspect.signature(F.batch_norm)
K = TypeVar("K")
Rows = TypeVar("Rows", Tensor, list[Any], tuple[Any, ...])
T = TypeVar("T")


def process_number() -> int:
    return dist.get_rank() if _on() else 0


def process_count() -> int:
    return dist.get_world_size() if _on() else 1


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def group() -> Iterator[None]:
    """Join the processes that torchrun started; without torchrun there is nothing to join.

    Whoever fine-tunes several times opens one group around it all: a second one on the same store was seen to hang.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1 or _on():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Until all processes are here."""
    if process_count() > 1:
        dist.barrier()


def of_the_first(value: T) -> T:
    """What the first process has: where each would come to something else."""
    if process_count() == 1:
        return value
    shared: list[Any] = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def gathered(found: dict[K, T]) -> dict[K, T]:
    """What all processes have found, one dictionary."""
    if process_count() == 1:
        return found
    parts: list[Any] = [None] * process_count()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def mine(rows: Rows) -> Rows:
    """This process' part of the global batch, or of a list of things to do: every n-th of it."""
    return rows[process_number() :: process_count()]


def all_rows(rows: Tensor, n: int) -> Tensor:
    """The `n` rows of the global batch, from each process' part of them."""
    if process_count() == 1:
        return rows
    whole = rows.new_zeros(n, *rows.shape[1:])
    whole[process_number() :: process_count()] = rows
    add([whole])
    return whole


def part(n: int) -> int:
    """How many of the first `n` of the global batch are mine."""
    return len(range(process_number(), n, process_count()))


def add(tensors: Iterable[Tensor | None]) -> None:
    """Sum over all processes, in place, in one message a data type."""
    if process_count() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None:
            by_type.setdefault(tensor.dtype, []).append(tensor)
    for group_of in by_type.values():
        flat = torch.cat([t.detach().reshape(-1) for t in group_of])
        dist.all_reduce(flat)
        for tensor, value in zip(group_of, flat.split([t.numel() for t in group_of])):
            tensor.detach().copy_(value.view(tensor.shape))


def agree(number: int) -> bool:
    """Do all processes have the same number?"""
    if process_count() == 1:
        return True
    found: list[Any] = [None] * process_count()
    dist.all_gather_object(found, number)
    return len(set(found)) == 1


def with_added_gradients(module: nn.Module) -> nn.Module:
    """The module, of which every process' gradients are summed over all of them, in buckets, while backward runs."""
    if process_count() == 1:
        return module
    newer = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    options: dict[str, Any] = {
        "forward_sync_buffers" if newer else "broadcast_buffers": False
    }  # they are the same everywhere
    wrapped = DistributedDataParallel(module, find_unused_parameters=True, **options)
    wrapped.register_comm_hook(None, _added)
    return wrapped


def _added(state, bucket):  # torch would compare annotations, which are text here, with its types
    """torch's own would divide by the number of processes; our losses are shares of the global batch's mean."""
    sent: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return sent.get_future().then(lambda done: done.value()[0])


class _Sum(torch.autograd.Function):
    """A sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class _GlobalNorms(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        asked = CALL.bind(*args, **(kwargs or {}))
        asked.apply_defaults()
        if not asked.arguments.pop("training"):
            return func(*args, **(kwargs or {}))
        norm = synchronised if asked.arguments["input"].is_cuda else batch_norm
        return norm(**asked.arguments)


@contextmanager
def global_norms() -> Iterator[None]:
    """Within, batch norms in training use the statistics of the global batch."""
    if process_count() == 1:
        yield
        return
    with _GlobalNorms():
        yield


def synchronised(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """The same by the function inside torch.nn.SyncBatchNorm: the network's own layers stay what they are."""
    every = dist.group.WORLD
    return SyncBatchNorm.apply(input, weight, bias, running_mean, running_var, eps, momentum, every, process_count())


def batch_norm(
    input: Tensor,  # [n,c,...]
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm in training, over the images of all processes."""
    x = input
    axes = [d for d in range(x.ndim) if d != 1]
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    count = wide.new_full((1,), x.numel() / x.shape[1])
    sums = _Sum.apply(torch.cat([wide.sum(axes), count]))
    n = sums[-1].detach()
    mean = sums[:-1] / n
    shape = [1, -1] + [1] * (x.ndim - 2)
    centred = wide - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / n  # two passes: no cancellation
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * n / (n - 1)).to(running_var.dtype), momentum)
    normal = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None:
        normal = normal * weight.view(shape)
    return (normal if bias is None else normal + bias.view(shape)).to(x.dtype)
