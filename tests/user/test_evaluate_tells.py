"""Into a file `evaluate` writes how long it may take, and then a line every half minute that says how far it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

SLOWLY = """
import time
import torch
from autolora import Threat
from autolora.attacks.autoattack import autoattack_of
from autolora.attacks.evaluation import Settings
from autolora.attacks.versions import Budget
from autolora.common.progress import named
from autolora.data.images import TestImages
from functools import partial
from stages.evaluate import tell
from tests.attacks.nets import images, smooth

ticks = iter(range(0, 10**9))
time.monotonic = lambda: next(ticks)  # a second passes between two looks at the clock
net, x = smooth(4), images(12)
settings = Settings(budget=Budget(queries=300), batch_size=4, tell=partial(tell, 12))
with named("evaluate"):
    autoattack_of(net, TestImages.of(x, net(x).argmax(1)), Threat("linf", 0.02), settings)
"""


def test_a_log_file_hears_of_every_attack(root: Path, python: str) -> None:
    done = subprocess.run([python, "-c", SLOWLY], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "\r" not in done.stderr
    told = [line for line in lines if line.startswith("evaluate: up to ") and " for 12 images" in line]
    assert len(told) == 1
    assert told[0] in lines[:4]
    rest = [line for line in lines if line not in told]
    for name in ("apgd-ce", "apgd-t", "fab-t", "square"):
        assert any(line.startswith(f"evaluate: {name}: ") and " stand: " in line for line in rest)
    assert all(" so far" in line for line in rest)
