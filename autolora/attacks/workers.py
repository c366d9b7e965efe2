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


def gathered(done: dict) -> dict:
    if workers() == 1:
        return done
    parts: list[Any] = [None] * workers()
    dist.all_gather_object(parts, done)
    return {job: point for part in parts for job, point in part.items()}
