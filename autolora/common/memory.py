"""How much memory there is: of a GPU, of a machine, of the container that a process runs in."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

# Control groups, version 2 and 1, as a container sees its own: limit, table, and the line of what is taken.
CGROUPS = [("memory.max", "memory.stat", "anon")]
CGROUPS += [("memory/memory.limit_in_bytes", "memory/memory.stat", "total_rss")]
CONTAINER = Path("/sys/fs/cgroup")
UNKNOWN = 4 << 30  # bytes that are taken to be free where nothing says how many are


def free_memory(device: torch.device, container: Path = CONTAINER) -> int:
    """Bytes that are free on the device; on a CPU at most what its container may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            machine = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        machine = UNKNOWN
    return min(machine, left_in_container(container))


def left_in_container(container: Path = CONTAINER) -> int:
    """Bytes that a container's limit leaves, where there is one: /proc/meminfo tells of the whole machine. Pages of
    files do not count as taken: the kernel drops them.
    """
    for limit, stat, taken in CGROUPS:
        try:
            allowed, table = (container / limit).read_text().strip(), (container / stat).read_text()
        except OSError:
            continue
        used = dict(line.split() for line in table.splitlines())
        return sys.maxsize if allowed == "max" else max(0, int(allowed) - int(used[taken]))
    return sys.maxsize
