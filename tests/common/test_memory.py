"""How much memory is free, in a container and on a machine."""

from __future__ import annotations

import sys

import pytest
import torch

from autolora.common.memory import free_memory, left_in_container


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "8000\n", "memory.stat": "anon 3000\nfile 4000\n"}, 5000),  # version 2
        ({"memory.max": "2000\n", "memory.stat": "anon 3000\n"}, 0),
        ({"memory.max": "max\n", "memory.stat": "anon 3000\n"}, sys.maxsize),
        ({"memory/memory.limit_in_bytes": "8000\n", "memory/memory.stat": "cache 9\ntotal_rss 1000\n"}, 7000),
        ({}, sys.maxsize),
    ],
)
def test_a_container_s_limit_counts_and_not_the_machine_it_runs_on(tmp_path, files, left):
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert left_in_container(tmp_path) == left


def test_a_container_has_no_more_than_its_limit_leaves(tmp_path):
    (tmp_path / "memory.max").write_text("8000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\n")
    assert free_memory(torch.device("cpu"), tmp_path) == 5000
    assert free_memory(torch.device("cpu"), tmp_path / "none") > 5000
