"""What a run that is handed over says when nobody is there to take it; on a real server: test_flows.py."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines.execution.work_pools import FOLLOW, PoolError, require_workers
from tests.pipelines.conftest import prefect_takes


def test_a_server_that_is_away_is_said_in_one_line():
    """Nobody listens on port 9."""
    away = "the Prefect server that PREFECT_API_URL names does not answer"
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(PoolError, match=away):
        require_workers("rebuild/gpu")


def test_how_to_follow_a_run_is_a_command_of_prefect():
    run = uuid4()
    program, *arguments = FOLLOW.split()
    assert (program, prefect_takes(*arguments, str(run))["id"]) == ("prefect", run)
