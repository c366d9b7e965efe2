"""Into a file a long stage writes whole lines that say how far it is; a short one says nothing of its progress."""

from __future__ import annotations

import pytest

SLOWLY = """
import time
import stages.prepare as prepare
from stages.common.runner import main
from stages.dataset.sources import SOURCES

ticks = iter(range(0, 10**9, 20))
time.monotonic = lambda: next(ticks)  # twenty seconds pass between two looks at the clock
main(prepare.prepare)
"""


def test_prepare_tells_a_log_file_how_far_it_is(clone):
    done = clone.run("python", "-c", SLOWLY)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines
    assert all(line.startswith("prepare: images: ") and " so far" in line for line in lines)
    assert "\r" not in done.stderr


@pytest.mark.slow
def test_a_short_stage_writes_no_bar_into_a_log(clone):
    done = clone.run("python", "-m", "stages.prepare")
    assert done.returncode == 0
    assert done.stderr == ""
