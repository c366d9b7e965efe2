"""Rebuild what is stale: DVC says what, Prefect runs it, stage by stage, as tasks with retries and time limits.

    python -m pipelines.rebuild                                           what is stale, here
    python -m pipelines.rebuild --stages merge                            merge and what it is made from
    python -m pipelines.rebuild --override finetune.method=vanilla        in a fresh workspace that shares DVC's cache
    python -m pipelines.rebuild --revision v1                             the same for a commit, branch or tag
    python -m pipelines.rebuild --pool gpu                                on a worker of a pool (docs/prefect.md)

No server is needed: Prefect starts one for as long as the run takes and keeps the history in ~/.prefect, where
`prefect server start` shows it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect import flow, get_client, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from autolora.common.command_line import Command, at_least_one
from pipelines.execution import commands
from pipelines.execution import gpu_slots as slots
from pipelines.execution import work_pools as pools
from pipelines.execution.parameters import ParameterError, Revision, inside, own_clone
from pipelines.sweeps import tracking
from pipelines.workspace import commits, params_file, results
from pipelines.workspace import dvc_graph as graph
from pipelines.workspace import worktree as workspace
from pipelines.workspace.dvc_graph import Stage
from stages.common.clone import clone_of
from stages.common.endings import ended, forget
from stages.common.errors import AGAIN, BUSY, MEND
from stages.common.scrub import scrubbed

PERCENT = re.compile(r"\b(\d{1,3})%\|")  # tqdm: "finetune:  42%|####   | 25/60 ..."
HINTS = ("To track the changes with git", "git add ", "To enable auto staging", "dvc config core.", "Use `dvc push`")
MOST_RUNS = 5
INSTEAD = ", or give --uncommitted to build from them all the same (here, without --override and --revision)"
LOOK = 15.0  # seconds between two looks at whether this run still is the one
EVERY = 10.0  # seconds between two reports of one progress bar
PAUSE = 15.0  # seconds between two tries of what another process is making
Made = TypeVar("Made")


class StageFailed(Exception):
    """`code` is one of stages/common/errors.py: the stage itself said what it takes to go on."""

    code = MEND


REFUSED = (
    graph.GraphError,
    commits.WorkspaceError,
    slots.SlotError,
    pools.PoolError,
    ParameterError,
    commands.CommandFailed,
    StageFailed,
)


def worth_a_retry(task: Any, task_run: Any, state: Any) -> bool:
    """What the stage says may pass by itself, and what ended before it could say anything: a killed process."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, StageFailed) or error.code == AGAIN


@task(name="dvc repro", task_run_name="dvc {stage.name}", cache_policy=NO_CACHE, retry_condition_fn=worth_a_retry)
def repro(stage: Stage, folder: Path, env: dict[str, str], gpus: int) -> dict[str, Any]:
    """One stage: DVC decides between running it and fetching the same result from its run cache."""
    report = Reporter(stage.name)
    lines, seconds = when_free(lambda: in_slots(stage, folder, env, gpus, report), stage.minutes * 60, report)
    report.done()
    return {
        "stage": stage.name,
        "what": "from DVC's cache" if any("is cached - skipping run" in line for line in lines) else "run",
        "seconds": round(seconds, 1),
    }


def in_slots(
    stage: Stage, folder: Path, env: dict[str, str], gpus: int, say: Callable[[str], None]
) -> tuple[list[str], float]:
    """With GPUs of its own, where it wants any; its last lines, and seconds without the wait for a slot."""
    with slots.held(gpus if stage.gpu else 0, slots.gpus()) as devices:
        start = time.perf_counter()
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        lines = run_stage(stage, folder, env | visible, say)
    return lines, time.perf_counter() - start


def when_free(work: Callable[[], Made], seconds: float, say: Callable[[str], None]) -> Made:
    """Another cell may be making the very same thing, or the run that this one replaces be about to end: wait for it.

    It ends, and DVC's run cache has what it made; or it dies, and this one goes on from its progress.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except StageFailed as error:
            if error.code != BUSY or time.monotonic() > deadline:
                raise
            say(f"another process makes the same: looking again in {PAUSE:g} s")
            time.sleep(PAUSE)


def run_stage(stage: Stage, folder: Path, env: dict[str, str], say: Callable[[str], None]) -> list[str]:
    """With a DVC remote, what another machine has built is fetched, and what is built here is there for the next."""
    dvc, shared = [sys.executable, "-m", "dvc"], workspace.remote(folder)
    command = [*dvc, "repro", "--single-item", stage.name, *(["--pull"] if shared else [])]
    forget(stage.name, folder)
    try:
        lines = commands.run(command, folder, env, stage.minutes * 60, say)
    except commands.CommandFailed:
        if not (ending := ended(stage.name, folder)):
            raise
        failed = StageFailed(f"{stage.name}: {ending.message}")
        failed.code = ending.code
        raise failed from None
    if shared:
        commands.run([*dvc, "push", "--run-cache", stage.name], folder, env, stage.minutes * 60, say)
    return lines


class Reporter:
    """Lines to the run's log as they come; of a progress bar one in ten seconds, and its percentage as an artifact."""

    def __init__(self, stage: str) -> None:
        self.log, self.last = get_run_logger(), -EVERY
        key = re.sub(r"[^a-z0-9]+", "-", stage.lower())
        self.artifact: Any = create_progress_artifact(0.0, key=f"progress-{key}", description=f"stage {stage}")

    def __call__(self, line: str) -> None:
        percent = PERCENT.search(line)
        if line.strip().startswith(HINTS):
            return
        if not percent:
            self.log.info("%s", line)
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            self.log.info("%s", line)
            self.show(float(percent[1]))

    def done(self) -> None:
        self.show(100.0)

    def show(self, percent: float) -> None:
        with suppress(Exception):  # a server that is away is no reason to end a training
            update_progress_artifact(self.artifact, progress=percent)


@contextmanager
def place(source: Path, revision: str | None, overrides: Mapping[str, Any], preset: str | None) -> Iterator[Path]:
    """Here; with overrides, a revision or a preset in a fresh worktree."""
    if overrides or revision or preset:
        with workspace.fresh(source, revision, overrides, run_name(), preset) as folder:
            yield folder
    else:
        yield source


def run_name() -> str:
    """What a list of runs shows: rebuild merge seed=1 @v1"""
    given = flow_run.parameters
    overrides = [f"{key}={value}" for key, value in (given.get("overrides") or {}).items()]
    revision = [f"@{given['revision'][:12]}"] if given.get("revision") else []
    preset = [Path(given["preset"]).stem] if given.get("preset") else []
    return " ".join(["rebuild", *(given.get("stages") or []), *preset, *overrides, *revision])


@flow(name="rebuild", flow_run_name=run_name, persist_result=False)
def rebuild(
    stages: list[str] | None = None,
    *,
    overrides: dict[str, Any] | None = None,
    revision: Revision | None = None,
    folder: Path = Path("."),
    uncommitted: bool = False,
    gpus: int = 1,
    preset: str | None = None,
    keep: str | None = None,
) -> list[dict[str, Any]]:
    """Each stale stage in order; a stage that is up to date costs a look and no task.

    gpus: how many a stage with `meta: {gpu: true}` takes. preset: a params.yaml to start from.
    keep: where in `.work` (AUTOLORA_WORK) a fresh workspace leaves its reports; by default in rebuilds/<run's name>.
    """
    source, overrides = own_clone(folder), overrides or {}
    work = work_root(source)
    kept = inside(work, keep, "keep") if keep else work / "rebuilds" / workspace.slug(run_name())
    leave_no_orphans()
    workspace.use_storage(source)
    fresh = bool(overrides or revision or preset)
    refuse(source, stages or [], revision, uncommitted=uncommitted and not fresh)
    if fresh:
        results.require_writable(kept)
    with place(source, revision, overrides, preset) as here, workspace.alone(here):
        env = environment(source, here)
        rows = [outcome(stage, here, env, gpus) for stage in graph.stages(here, stages or [])]
        if fresh:
            results.collect(here, kept)
            get_run_logger().info("the workspace goes; its reports stay in %s", kept)
        publish(kept if fresh else here, rows)
    return rows


def refuse(source: Path, stages: Sequence[str], revision: str | None, *, uncommitted: bool) -> None:
    """What can be known to be wrong before a server is started or a workspace made."""
    graph.stages(source, stages)
    commits.resolve(source, revision or "HEAD")
    if not uncommitted and revision is None:  # what is built from a commit does not see what is not in it
        commits.refuse_uncommitted(source, INSTEAD)


def refuse_unseen_params(source: Path, elsewhere: str | None) -> None:
    """A worker works in a clone of its own."""
    if not elsewhere and commits.changed_params(source):
        raise commits.WorkspaceError(
            "params.yaml is changed here, and a worker does not see that: commit and push it, or give --override"
        )


def meant(source: Path, revision: str | None) -> str | None:
    """A branch is another commit in another clone: a worker is told which one it stands for here. What only the
    worker's remotes know goes as it was typed.
    """
    with suppress(commits.WorkspaceError):
        return commits.resolve(source, revision) if revision else None
    return revision


def leave_no_orphans() -> None:
    """Started by a worker, end with it, and when the run goes on elsewhere; started again and again, give up."""
    mine = flow_run.run_count or 0
    if mine > MOST_RUNS:
        raise RuntimeError(f"this run has been started {MOST_RUNS} times and its worker died each time: giving up")
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        identity = flow_run.id
        commands.end_with_parent()
        # With 0: of any other code this process's worker would say that the run has crashed, which goes on elsewhere.
        commands.end_when(lambda: superseded(identity, mine), LOOK, code=0)


def superseded(identity: str, mine: int) -> bool:
    """Was this run taken for dead (the server was away for long) and started anew? A silent server says nothing."""
    try:
        with get_client(sync_client=True) as client:
            now = client.read_flow_run(UUID(identity))
    except Exception:  # whatever the way to the server raises: it is no reason to end
        return False
    return now.run_count > mine or bool(now.state and now.state.is_crashed())


def outcome(stage: Stage, folder: Path, env: dict[str, str], gpus: int) -> dict[str, Any]:
    log = get_run_logger()
    reasons = graph.stale(folder, stage.name)
    if not reasons:
        log.info("%s is up to date", stage.name)
        return {"stage": stage.name, "what": "up to date", "seconds": 0.0}
    log.info("%s is stale: %s", stage.name, "; ".join(reasons[:5]))
    return repro.with_options(retries=stage.retries, retry_delay_seconds=[5, 60])(stage, folder, env, gpus)


def publish(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The figures, the stages and the way to more, as artifacts of the run."""
    create_table_artifact(key="rebuild", table=results.rows(folder, rows), description=run_name())
    create_markdown_artifact(key="rebuild-summary", markdown=results.summary(folder, run_name(), rows))
    for what, link in results.links(folder).items():
        create_link_artifact(key=what, link=link)


def work_root(source: Path) -> Path:
    """Whole, since stages of an older revision in a fresh worktree look for it there."""
    return clone_of(source) / (os.environ.get("AUTOLORA_WORK") or ".work")


def environment(source: Path, here: Path) -> dict[str, str]:
    """A workspace keeps progress and MLflow's sqlite beside the source, where they outlive it."""
    if here == source:
        return commands.environment(PYTHONPATH=str(here))
    return commands.environment(
        PYTHONPATH=str(here), AUTOLORA_WORK=str(work_root(source)), MLFLOW_TRACKING_URI=tracking.uri(source)
    )


def main() -> None:
    parser = Command(
        __doc__,
        reads="dvc.yaml, params.yaml, dvc.lock, and what the stages read",
        writes="what the stages write, DVC's cache, Prefect's history; with --override, --revision or --preset "
        "a workspace of its own",
    )
    parser.add_argument(
        "--stages", nargs="+", action="extend", default=[], metavar="STAGE", help="these and what they are made from"
    )
    parser.add_argument(
        "--override", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="other values for params.yaml"
    )
    parser.add_argument("--preset", metavar="FILE", help="a params.yaml to start from, as presets/cifar10.yaml")
    parser.add_argument("--revision", help="a commit, branch or tag")
    parser.add_argument("--uncommitted", action="store_true", help="build from changes that are not committed")
    parser.add_argument(
        "--gpus", type=at_least_one, default=1, metavar="N", help="GPUs for a stage that trains (default 1)"
    )
    parser.add_argument("--pool", help="let a worker of this pool do it")
    args = parser.parse_args()
    try:
        start(args)
    except REFUSED as error:
        sys.exit(scrubbed(f"rebuild: {error}"))


def start(args: argparse.Namespace) -> None:
    given = {
        "stages": args.stages,
        "overrides": params_file.parse_overrides(args.override),
        "revision": args.revision,
        "uncommitted": args.uncommitted,
        "gpus": args.gpus,
        "preset": args.preset,
    }
    if args.pool:
        refuse_unseen_params(Path.cwd(), args.revision or args.preset)
        print(pools.submit(f"rebuild/{args.pool}", given | {"revision": meant(Path.cwd(), args.revision)}))
    else:
        fresh = bool(args.override or args.revision or args.preset)
        refuse(Path.cwd(), args.stages, args.revision, uncommitted=args.uncommitted and not fresh)
        rebuild(**given | {"revision": meant(Path.cwd(), args.revision)})  # a branch's name may hold what no run takes


if __name__ == "__main__":
    main()
