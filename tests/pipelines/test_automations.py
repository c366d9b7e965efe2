"""What the two automations look at, by the code with which Prefect's server judges events."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import pytest
import yaml

from pipelines.execution import automations
from tests.pipelines.conftest import ROOT

SILENT = automations.silent_runs_have_crashed(180)
CRASHED = automations.crashed_runs_are_scheduled_again()


def looks_at(automation, event: str, flow: str, tags: tuple[str, ...]) -> bool:
    """The event as Prefect sends it: the run, its flow, and a related resource for each tag."""
    from prefect.events.related import tags_as_related_resources
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    of_the_flow = {
        "prefect.resource.id": f"prefect.flow.{uuid.uuid4()}",
        "prefect.resource.role": "flow",
        "prefect.resource.name": flow,
    }
    happened = ReceivedEvent(
        occurred="2026-01-01T00:00:00Z",
        event=event,
        resource={"prefect.resource.id": f"prefect.flow-run.{uuid.uuid4()}", "prefect.resource.name": "a run"},
        related=[of_the_flow, *(related.model_dump() for related in tags_as_related_resources(set(tags)))],
        id=uuid.uuid4(),
    )
    trigger = EventTrigger.model_validate(automation.trigger.model_dump(mode="json"))
    assert trigger.event_pattern.match(event)
    return trigger.covers(happened)


OURS = ("autolora", "mine")


@pytest.mark.parametrize(
    ("flow", "tags", "may_crash", "again"),
    [
        ("rebuild", OURS, True, True),
        ("sweep", OURS, True, True),
        ("promote", OURS, True, False),  # a decision is not taken twice
        ("rebuild", (), False, False),  # in somebody's shell
        ("rebuild", ("theirs",), False, False),
        ("theirs", (), False, False),
    ],
)
def test_rules_are_of_runs_of_our_deployments(flow, tags, may_crash, again):
    assert looks_at(SILENT, "prefect.flow-run.heartbeat", flow, tags) is may_crash
    assert looks_at(CRASHED, "prefect.flow-run.Crashed", flow, tags) is again


def test_each_deployment_has_the_tag():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert all(deployment["tags"] == ["autolora"] for deployment in deployments)


def test_a_run_in_a_shell_has_the_heartbeats_of_the_deployments():
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"}
    asked = "import pipelines, prefect.settings as s; print(s.get_current_settings().flows.heartbeat_frequency)"
    told = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    environment = yaml.safe_load((ROOT / "prefect.yaml").read_text())["definitions"]["environment"]
    assert told.stdout.strip() == environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
