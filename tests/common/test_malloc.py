"""The heap is kept from one gradient to the next, and given back at the end."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, re, resource
import numpy as np
from autolora.common.malloc import freed_memory_kept, freed_memory_returned

def gradient():  # activations: all alive, then all freed
    return sum(float(a[0]) for a in [np.ones(1 << 18) for _ in range(32)])

def faults(times=5):
    gradient()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        gradient()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / times

def held():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

found = {"outside": faults(), "start": held()}
with freed_memory_kept():
    with freed_memory_kept():
        found["inside"] = faults()
    found["still"] = faults()
    found["kept"] = held()
    freed_memory_returned()
    found["returned"] = held()
    found["inside again"] = faults()
found["end"] = held()
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is not glibc's")
def test_pages_are_fetched_once_and_given_back(root: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert found["outside"] > 4000  # of the 16,384 that hold 64 MB
    assert max(found["inside"], found["still"], found["inside again"]) < 100
    assert found["kept"] > found["start"] + 50
    assert found["returned"] < found["start"] + 10
    assert found["end"] < found["start"] + 10
