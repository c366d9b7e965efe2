"""Memory that a process keeps from one gradient to the next.

A gradient's activations are freed all at once. glibc gives the free end of its heap back to the system then, and the
next gradient fetches it again, page by page: on a CPU a tenth to a fifth of its time. What is held at most is the same.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = 32 << 20  # bytes; larger blocks are mapped one by one, glibc takes no higher threshold

users = 0  # within one another, or in threads


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Nothing freed goes back before the end, where all of it does. Without glibc nothing happens."""
    global users
    libc = _glibc()
    if users == 0 and libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    users += 1
    try:
        yield
    finally:
        users -= 1
        if users == 0 and libc is not None:
            libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST)  # what glibc comes to by itself when it has freed such a block
            freed_memory_returned()


def freed_memory_returned() -> None:
    """What is free goes back now, wherever in the heap it lies: another piece of work begins, with needs of its own."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") else None
