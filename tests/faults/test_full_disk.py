"""A checkpoint that does not fit says so in the system's words, and the one before it stays."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from autolora.training import resume


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file beyond 100 kB, as if the disk were full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def learner(size: int) -> SimpleNamespace:
    part = SimpleNamespace(state_dict=dict, state=dict)
    parts = dict.fromkeys(("optimiser", "controller", "attacker", "variety"), part)
    return SimpleNamespace(state=lambda: {"w": torch.ones(size)}, weights=[], balance=None, **parts)


def test_a_checkpoint_that_does_not_fit(tmp_path, small_files):
    file, done = tmp_path / "epochs.pt", SimpleNamespace(epoch=1)
    resume.keep(learner(10), done, file)
    before = file.read_bytes()
    with pytest.raises(OSError, match=r"epochs\.pt") as raised:
        resume.keep(learner(100_000), done, file)
    assert raised.value.errno == errno.EFBIG
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
