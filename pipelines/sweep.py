"""A grid of rebuilds, each in a workspace of its own, and one table at the end.

    python -m pipelines.sweep paper-table                  the grid of the paper, on this machine
    python -m pipelines.sweep paper-table --pool gpu       on every worker of a pool
    python -m pipelines.sweep my.yaml --at-once 4          four cells at a time here (default: one per GPU)
    python -m pipelines.sweep digits --list                what it would do
    python -m pipelines.sweep digits --only '*-0-6-fast-*' cells by their names, as --list shows them

Give it again, and it does what is missing: a finished cell is read, a failed one goes on where it stopped, and what
cells share comes from DVC's cache. Table and picture lie in reports/sweeps/<name>/.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import yaml
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run

from autolora.common.command_line import Command, at_least_one
from autolora.common.errors import DIVERGED
from pipelines import rebuild
from pipelines.execution import gpu_slots as slots
from pipelines.execution import work_pools as pools
from pipelines.execution.parameters import Revision, inside, own_clone, started_by_a_worker
from pipelines.sweeps import comparison, grid, search, tracking
from pipelines.sweeps.comparison import Result
from pipelines.sweeps.grid import Cell, Sweep
from pipelines.sweeps.marks import Marks
from pipelines.sweeps.runners import runner
from pipelines.workspace import commits, params_file
from pipelines.workspace import dvc_graph as graph
from pipelines.workspace.revisions import schema_in
from stages.common.scrub import scrubbed


@task(task_run_name="{what} {cell}", cache_policy=NO_CACHE)
def build(what: str, cell: str, parameters: dict[str, Any], pool: str | None) -> None:
    """One rebuild in a fresh workspace: here as a flow within the flow, or on whichever worker of the pool is free."""
    if pool:
        pools.run_and_wait(f"rebuild/{pool}-cell", parameters, f"{what} {parameters['keep']}")
    else:
        rebuild.rebuild(**parameters)


def parameters_of(sweep: Sweep, cell: Cell, commit: str, stages: list[str], folder: Path) -> dict[str, Any]:
    return {
        "stages": stages,
        "preset": cell.preset,
        "overrides": cell.overrides | cell.found,
        "revision": commit,
        "folder": str(folder),
        "keep": f"sweeps/{sweep.name}/{cell.name()}",
    }


@flow(name="sweep", flow_run_name=lambda: f"sweep {flow_run.parameters['name']}", persist_result=False)
def sweep(
    name: str,
    folder: Path = Path("."),
    revision: Revision = "HEAD",
    pool: str | None = None,
    only: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Every cell that is not finished, then the table of all that are."""
    source = own_clone(folder)
    if started_by_a_worker():
        inside(source, name, "name")
    plan, commit = refuse(source, name, revision)
    marks = Marks(rebuild.work_root(source), plan.name, commit)
    wanted = chosen(plan, only)
    if pool:
        pools.require_workers(f"rebuild/{pool}-cell")
    with marks.alone():
        return carry_out(source, plan, marks, wanted, pool)


def carry_out(source: Path, plan: Sweep, marks: Marks, wanted: list[Cell], pool: str | None) -> list[dict[str, Any]]:
    tries = tries_of(plan, wanted)
    to_try = [each for each in tries.values() if not marks.lost(each)]
    failed = build_all(source, plan, marks, to_try, search.STAGES, pool) if tries else {}
    failed = without_diverged(source, marks, tries, failed)
    failed |= {
        cell.name(): "training diverges at every value of its search" for cell in wanted if marks.hopeless(plan, cell)
    }
    ready = [done for cell in wanted if (done := marks.settled(plan, cell))]
    failed |= build_all(source, plan, marks, ready, plan.stages, pool)
    return conclude(source, plan, marks, failed, len(tries) + len(wanted))


def chosen(plan: Sweep, only: list[str] | None) -> list[Cell]:
    """Cells by patterns of their names, as --list shows them."""
    found = [cell for cell in plan.cells if any(fnmatch.fnmatch(cell.name(), some) for some in only or ["*"])]
    if not found:
        raise grid.GridError(f"sweep {plan.name}: no cell is called {' or '.join(only or [])}: --list shows the names")
    return found


def build_all(
    source: Path, plan: Sweep, marks: Marks, cells: list[Cell], stages: list[str], pool: str | None
) -> dict[str, str]:
    """Those that are not finished, each marked as finished when it is; the failed ones with their reasons."""
    waiting = {cell.name(): cell for cell in cells if not marks.finished(cell)}
    get_run_logger().info("%d cells, %d of them to do", len(cells), len(waiting))
    for cell in waiting.values():
        marks.forget(cell)
    there = Path(".") if pool else source  # on a worker: its own clone
    leading = leaders(source, plan, list(waiting.values()))
    once = [(cell, parameters_of(plan, cell, marks.commit, [str(plan.first)], there)) for cell in leading]
    fan_out("first", once, pool)
    every = [(cell, parameters_of(plan, cell, marks.commit, stages, there)) for cell in waiting.values()]
    return fan_out("cell", every, pool, lambda name: marks.finish(waiting[name]))


def refuse(source: Path, name: str, revision: str) -> tuple[Sweep, str]:
    """The plan and its commit, or what can be known to be wrong before a server is started or a cell is built."""
    plan = grid.load(name, source)
    graph.stages(source, [*plan.stages, *([plan.first] if plan.first else [])])
    commits.refuse_uncommitted(source)
    if commits.changed_params(source) and any(cell.preset is None for cell in plan.cells):
        raise grid.GridError("params.yaml is changed, and cells start from the committed one: commit it first")
    commit = commits.resolve(source, revision)
    if commit == commits.resolve(source, "HEAD"):  # another revision's schema judges its cells when they are built
        refuse_cells(source, plan)
    return plan, commit


def refuse_cells(source: Path, plan: Sweep) -> None:
    """One bad value in a grid would else be found out cell by cell, hours apart."""
    read_by_tries = graph.declared(source, search.STAGES) if plan.search else set()
    if plan.search and not any(f"{plan.search.key}.".startswith(f"{key}.") for key in read_by_tries):
        read = f"{', '.join(search.STAGES)} does not read it"
        raise grid.GridError(
            f"sweep {plan.name}: search.key is {plan.search.key}: {read}, so all tries would be the same"
        )
    with tempfile.TemporaryDirectory() as folder:
        cells = [*search.tries(plan), *plan.cells]
        for cell in cells:
            (Path(folder) / cell.name()).write_text(yaml.safe_dump(params_of(source, cell)))
        for preset in {cell.preset for cell in plan.cells if cell.preset}:
            commits.require_committed(source, preset)
        if schema_in(source):
            params_file.judge(source, Path(folder), [cell.name() for cell in cells])


def fan_out(
    what: str,
    jobs: list[tuple[Cell, dict[str, Any]]],
    pool: str | None,
    then: Callable[[str], str | None] = lambda name: None,
) -> dict[str, str]:
    """All at once as far as the task runner lets them; the failed ones with their reasons, the rest undisturbed.

    `then` is called for each that is completed, as soon as it is, and may say why it failed all the same.
    """
    futures: dict[str, PrefectFuture[Any]] = {
        cell.name(): build.submit(what, cell.name(), parameters, pool) for cell, parameters in jobs
    }
    failed = {}
    for name, future in as_they_end(futures):
        if why := then(name) if future.state.is_completed() else reason(future):
            failed[name] = why
            get_run_logger().error("%s %s failed: %s", what, name, why)
    return failed


def as_they_end(futures: dict[str, PrefectFuture[Any]]) -> Iterator[tuple[str, PrefectFuture[Any]]]:
    """One cell may take a day longer than another. (Prefect's own as_completed knows no futures of Ray and Dask.)"""
    ended: SimpleQueue[str] = SimpleQueue()

    def watch(name: str) -> None:
        with suppress(Exception):  # its state says what became of it
            futures[name].wait()
        ended.put(name)

    for name in futures:
        threading.Thread(target=watch, args=(name,), daemon=True).start()
    for _ in futures:
        name = ended.get()
        yield name, futures[name]


def reason(future: PrefectFuture[Any]) -> str:
    """What the stage said to the user ("finetune: there is no file ..."), where it did; else of the first line."""
    return (future.state.message or future.state.name or "unknown").strip().splitlines()[0]


def leaders(source: Path, plan: Sweep, waiting: list[Cell]) -> list[Cell]:
    """One cell for each different way in which the shared first stages come out."""
    if not plan.first:
        return []
    keys = graph.declared(source, [plan.first])
    different: dict[str, Cell] = {}
    for cell in waiting:
        values = params_of(source, cell)
        different.setdefault(repr([(key, value_at(values, key)) for key in sorted(keys)]), cell)
    return list(different.values())


def params_of(source: Path, cell: Cell) -> dict[str, Any]:
    file = inside(source, cell.preset or "params.yaml", "preset")
    if not file.is_file():
        raise grid.GridError(f"cell {cell.name()}: there is no preset {cell.preset}")
    params = yaml.safe_load(file.read_text())
    for key, value in (cell.overrides | cell.found).items():
        params_file.put(params, key, value, allow_new=True)
    return params


def value_at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def without_diverged(source: Path, marks: Marks, tries: dict[str, Cell], failed: dict[str, str]) -> dict[str, str]:
    """A value with which training diverges is an answer of the search too, the worst."""
    lost = [name for name, why in failed.items() if DIVERGED in why]
    for name in lost:
        marks.lose(tries[name], params_of(source, tries[name]))
    return {name: why for name, why in failed.items() if name not in lost}


def tries_of(plan: Sweep, wanted: list[Cell]) -> dict[str, Cell]:
    """What the searches of these cells need, each once."""
    return {each.name(): each for cell in wanted for each in search.tries_for(plan, cell)}


def conclude(source: Path, plan: Sweep, marks: Marks, failed: dict[str, str], asked: int) -> list[dict[str, Any]]:
    """Table, picture and MLflow's parent run from all cells that are finished, also of earlier runs."""
    ready = [cell for each in plan.cells if (cell := marks.settled(plan, each))]
    done = [Result(cell, marks.place(cell)) for cell in ready if marks.finished(cell)]
    rows = comparison.table(plan, [result for result in done if result.has_report()])
    files = comparison.write(plan, rows, source / "reports" / "sweeps" / plan.name)
    create_markdown_artifact(
        key="sweep", markdown=files[1].read_text(), description=f"{plan.title} at {marks.commit[:12]}"
    )
    get_run_logger().info("%s", files[1].read_text())
    tracking.record(source, plan, marks.commit, done, files, get_run_logger().warning)
    if failed:
        raise SweepIncomplete(failed, asked)
    return rows


class SweepIncomplete(RuntimeError):
    def __init__(self, failed: dict[str, str], cells: int) -> None:
        reasons = "\n".join(f"  {cell}: {why}" for cell, why in failed.items())
        super().__init__(f"{len(failed)} of {cells} cells failed; the same command resumes them:\n{reasons}")


def main() -> None:
    parser = Command(
        __doc__,
        reads="the grid, dvc.yaml, params.yaml, and what the stages read",
        writes="reports/sweeps/NAME/, DVC's cache, and a workspace for each cell",
    )
    parser.add_argument("name", help="of presets/sweeps/NAME.yaml, or a YAML file")
    parser.add_argument("--revision", default="HEAD", help="the commit, branch or tag that is built (default HEAD)")
    parser.add_argument("--pool", help="fan out over the workers of this pool")
    parser.add_argument(
        "--at-once",
        type=at_least_one,
        metavar="N",
        help="cells at a time on this machine (default: one per GPU, or one)",
    )
    parser.add_argument(
        "--runner",
        choices=["threads", "ray", "dask"],
        default="threads",
        help="what cells run in: threads here, or tasks of a Ray or Dask cluster (default threads)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        metavar="PATTERN",
        help="cells whose names match, with the tries that they need",
    )
    parser.add_argument("--list", action="store_true", help="show the cells and end")
    args = parser.parse_args()
    try:
        show(args.name, args.revision, args.only) if args.list else start(args)
    except (grid.GridError, SweepIncomplete, *rebuild.REFUSED) as error:
        sys.exit(scrubbed(f"sweep: {error}"))
    except ImportError as error:
        sys.exit(f"sweep: --runner {args.runner} needs a package that is not installed: {error}")


def start(args: argparse.Namespace) -> None:
    at_once = args.at_once or max(1, len(slots.gpus()))
    if args.pool:  # its workers set the pace themselves
        at_once = max(at_once, 64)
    plan, commit = refuse(Path.cwd(), args.name, args.revision)
    chosen(plan, args.only)
    flow_here = sweep.with_options(task_runner=runner(args.runner, at_once))
    flow_here(args.name, revision=commit, pool=args.pool, only=args.only)


def show(name: str, revision: str, only: list[str] | None) -> None:
    source = Path(".").resolve()
    plan = grid.load(name, source)
    marks = Marks(rebuild.work_root(source), plan.name, commits.resolve(source, revision))
    wanted = chosen(plan, only)
    tries = tries_of(plan, wanted)
    for cell in [*tries.values(), *wanted]:
        is_try = cell.name() in tries
        ready = cell if is_try else marks.settled(plan, cell)
        if ready is not None and marks.finished(ready):
            state = "done"
        elif marks.lost(cell) or (not (is_try or ready) and marks.hopeless(plan, cell)):
            state = "diverged"
        else:
            state = "to do" if ready else "after its search"
        print(state, cell.name(), cell.preset or "", (ready or cell).overrides | (ready or cell).found)


if __name__ == "__main__":
    main()
