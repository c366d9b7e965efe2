"""The processes among which an evaluation is shared out (torch.distributed, where it is initialised)."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def workers() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def worker() -> int:
    return dist.get_rank() if workers() > 1 else 0


def wait() -> None:
    if workers() > 1:
        dist.barrier()


def of_the_first(value: Any) -> Any:
    """What the first process has: where each would come to something else."""
    if workers() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def gathered(done: dict) -> dict:
    if workers() == 1:
        return done
    parts: list[Any] = [None] * workers()
    dist.all_gather_object(parts, done)
    return {job: point for part in parts for job, point in part.items()}
