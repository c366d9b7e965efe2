"""What a self-hosted server must be told once, so that a run outlives the machine that it was on.

    python -m pipelines.execution.automations                       PREFECT_API_URL says which server; safe to repeat

1. "autolora: silent runs have crashed": a run whose heartbeats stop (machine gone, worker killed with -9) is marked
   Crashed. Prefect's server ships without this rule, and such a run would stay Running for ever.
2. "autolora: crashed runs are scheduled again": a crashed run of our deployments goes back to its work pool, where any
   other worker takes it up. It goes on from the last checkpoint if AUTOLORA_WORK is storage that both machines see.

Both look at runs of our deployments alone, by their tag: a run in somebody's shell or of another team has no worker to
lose, and heartbeats of its own rhythm.

A run that crashes its worker again and again gives itself up (`rebuild.MOST_RUNS`). One that was taken for dead (the
server was away for longer than --silence) notices that it goes on elsewhere, and ends.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from autolora.common.command_line import Command

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")}
RUN = {"prefect.resource.id"}
EVERY_RUN = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
OURS = ResourceSpecification(
    {"prefect.resource.role": ["tag"], "prefect.resource.id": ["prefect.tag.autolora"]}
)  # prefect.yaml
FLOWS = ("rebuild", "sweep")  # what may safely be done twice: DVC repeats nothing, a training resumes


def silent_runs_have_crashed(seconds: float) -> Automation:
    """After a heartbeat, neither another one nor an end within so many seconds."""
    trigger = EventTrigger(
        after={HEARTBEAT},
        expect={HEARTBEAT, *ENDS},
        match=EVERY_RUN,
        match_related=OURS,
        for_each=RUN,
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    crash = ChangeFlowRunState(state=StateType.CRASHED, message=f"no heartbeat for {seconds:g} s: its worker is gone")
    return Automation(name="autolora: silent runs have crashed", trigger=trigger, actions=[crash])


def crashed_runs_are_scheduled_again() -> Automation:
    repeatable = ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": list(FLOWS)})
    trigger = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match=EVERY_RUN,
        match_related=[OURS, repeatable],
        for_each=RUN,
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    again = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="on another worker")
    return Automation(name="autolora: crashed runs are scheduled again", trigger=trigger, actions=[again])


def install(seconds: float) -> list[str]:
    """Create both, or bring those that exist up to date."""
    wanted = [silent_runs_have_crashed(seconds), crashed_runs_are_scheduled_again()]
    for automation in wanted:
        known = _known(automation.name)
        if known:
            automation.id = known.id
            automation.update()
        else:
            automation.create()
    return [automation.name for automation in wanted]


def _known(name: str) -> Any:
    try:
        return Automation.read(name=name)
    except ValueError:
        return None


def main() -> None:
    parser = Command(
        __doc__,
        reads="the automations of Prefect's server",
        writes="the two automations, and prints their names",
    )
    parser.add_argument("--silence", type=float, default=180, help="seconds without a heartbeat (one comes every 30 s)")
    print("\n".join(install(parser.parse_args().silence)))


if __name__ == "__main__":
    main()
