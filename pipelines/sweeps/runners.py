"""Where the cells of a sweep are started from: threads of this process, or a Ray or Dask cluster that sees this folder.

RAY_ADDRESS and DASK_SCHEDULER_ADDRESS name a cluster; else it is started here, for as long as the sweep takes.
"""

from __future__ import annotations

import os
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner


def runner(kind: str, at_once: int) -> TaskRunner[Any]:
    return {"ray": on_ray, "dask": on_dask}.get(kind, threads)(at_once)


def threads(at_once: int) -> TaskRunner[Any]:
    """Enough: a cell is processes of its own anyway."""
    return ThreadPoolTaskRunner(max_workers=at_once)


def on_ray(at_once: int) -> TaskRunner[Any]:
    """Ray sends statistics home unless told not to, and under `uv run` it would make an environment per worker."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    from prefect_ray import RayTaskRunner

    if os.environ.get("RAY_ADDRESS"):
        return RayTaskRunner()
    return RayTaskRunner(init_kwargs={"num_cpus": at_once, "include_dashboard": False})


def on_dask(at_once: int) -> TaskRunner[Any]:
    from prefect_dask import DaskTaskRunner

    if address := os.environ.get("DASK_SCHEDULER_ADDRESS"):
        return DaskTaskRunner(address=address)
    return DaskTaskRunner(
        cluster_kwargs={"n_workers": at_once, "threads_per_worker": 1, "dashboard_address": None}  # no web server
    )
