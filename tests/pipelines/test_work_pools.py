"""What a run that is handed over says when nobody is there to take it; on a real server: test_flows.py."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines.execution.work_pools import PoolError, require_workers


def test_a_server_that_is_away_is_said_in_one_line():
    """Nobody listens on port 9."""
    away = "the Prefect server that PREFECT_API_URL names does not answer"
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(PoolError, match=away):
        require_workers("rebuild/gpu")
