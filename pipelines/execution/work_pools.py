"""Work pools: hand a run to a worker, and say so at once when there is none."""

from __future__ import annotations

import time
from typing import Any

import httpx
from prefect.logging import get_logger
from prefect.settings import get_current_settings

from autolora.common.errors import first_line

POLL = 5.0  # seconds between two looks at a run on another machine
LIVE = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]
FOLLOW = "prefect flow-run watch"


class PoolError(RuntimeError):
    pass


def submit(deployment: str, parameters: dict[str, Any]) -> str:
    """Schedule a run of `flow/deployment` and return how to follow it."""
    from prefect.deployments import run_deployment

    require_workers(deployment)
    run: Any = run_deployment(name=deployment, parameters=parameters, timeout=0)
    return f"{run.name}: {run.id}\n{FOLLOW} {run.id}"


def run_and_wait(deployment: str, parameters: dict[str, Any], what: str) -> None:
    """As part of the flow that calls; a run that does not complete is an error with its message."""
    from prefect import get_client

    run = live_run(parameters, what) or new_run(deployment, parameters, what)
    with get_client(sync_client=True) as client:
        while not run.state.is_final():
            time.sleep(POLL)
            run = client.read_flow_run(run.id)
    if not run.state.is_completed():
        raise PoolError(f"{run.name}: {run.state.name}: {run.state.message}")


def new_run(deployment: str, parameters: dict[str, Any], what: str) -> Any:
    """Its tag says what it makes."""
    from prefect.deployments import run_deployment

    return run_deployment(name=deployment, parameters=parameters, timeout=0, tags=[what])


def live_run(parameters: dict[str, Any], what: str) -> Any:
    """What a sweep that was stopped has left on the workers: a second run would collect into the same folder."""
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    wanted = FlowRunFilter.model_validate({"tags": {"all_": [what]}, "state": {"type": {"any_": LIVE}}})
    with get_client(sync_client=True) as client:
        run = next(iter(client.read_flow_runs(flow_run_filter=wanted)), None)
    if run and any(run.parameters.get(key) != value for key, value in parameters.items()):
        raise PoolError(
            f"run {run.name} still makes this {what} otherwise: wait, or `prefect flow-run cancel {run.id}`"
        )
    if run:
        get_logger("work_pools").info("%s: run %s is at work on it already: waiting for it", what, run.name)
    return run


def require_workers(deployment: str) -> None:
    """A pool without workers would keep the run waiting in silence."""
    if not get_current_settings().api.url:
        raise PoolError("a work pool needs a Prefect server: `prefect server start`, then set PREFECT_API_URL")
    try:
        _require_workers(deployment)
    except httpx.TransportError as error:
        said = f"the Prefect server that PREFECT_API_URL names does not answer ({first_line(error)})"
        raise PoolError(f"{said}; nothing was scheduled") from None


def _require_workers(deployment: str) -> None:
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            pool = client.read_deployment_by_name(deployment).work_pool_name
        except ObjectNotFound:
            raise PoolError(
                f"there is no deployment {deployment} on the server: `prefect deploy --all` makes it"
            ) from None
        workers = client.read_workers_for_work_pool(pool or "")
    if not any(str(worker.status) == "WorkerStatus.ONLINE" or worker.status == "ONLINE" for worker in workers):
        raise PoolError(
            f"no worker is online in pool {pool}; nothing was scheduled. On a machine with the repository: "
            f"`prefect worker start --pool {pool}`"
        )
