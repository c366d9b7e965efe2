"""What nvidia-smi says of this machine, and what it means when it says nothing."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines.execution import gpu_slots as slots

FAILED = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A program of that name that says this and ends so."""

    def put(says: str, status: int) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


def test_each_gpu_is_named_by_its_uuid(nvidia_smi, monkeypatch):
    nvidia_smi("0, GPU-aa\n1, GPU-bb", 0)
    assert slots.gpus() == ["GPU-aa", "GPU-bb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-cc")
    assert slots.gpus() == ["GPU-bb", "GPU-cc"]


def test_a_machine_without_a_gpu_holds_none(nvidia_smi):
    nvidia_smi("No devices were found", slots.NO_GPU)
    assert slots.gpus() == []


def test_a_driver_that_is_down_is_no_machine_without_a_gpu(nvidia_smi, monkeypatch):
    """It would train on its CPU, and nobody would know; who wants that can say it."""
    nvidia_smi(FAILED, 9)
    with pytest.raises(slots.SlotError, match=f"nvidia-smi failed: {FAILED}"):
        slots.gpus()
    monkeypatch.setattr("sys.argv", ["gpu_slots"])
    with pytest.raises(SystemExit, match="slots: nvidia-smi failed"):
        slots.main()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots.gpus() == []


def test_a_server_that_is_away_does_not_end_the_renewal():
    """Nobody listens on port 9; on a real server: test_flows.py."""
    lease = uuid4()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert slots.renewed("gpu:x", lease) == lease
