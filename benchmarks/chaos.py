"""Hurt a run of the pipeline in every way that we could think of, go on, and compare what comes out to the byte.

    python -m benchmarks.chaos                                  thirty kills of the default run, and all other faults
    python -m benchmarks.chaos --only kills --kills 10 --seed 1
    python -m benchmarks.chaos --only "disk full" --small       few epochs, few images: a minute a fault
    python -m benchmarks.chaos --list

A kill: SIGKILL or SIGTERM, of everything, of `dvc` alone or of the stage alone, at a random moment of a given stage;
then `dvc repro` is started again. The kills of one chain hit the same run. Afterwards all outputs are compared with
those of an undisturbed run of the same commit. `lost` counts what was whole before the fault and is gone after it:
outputs that dvc.lock promises, versions in the registry, decisions in the promotion log.

Results go to --results as they come; with the same --folder a second call goes on where the first one was stopped.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from autolora.common.command_line import Command
from autolora.common.files import read_json, write_json
from benchmarks import _hurts as hurts
from benchmarks._hurts import Place
from benchmarks._project import ROOT, STAGES, TRIES, Project, different
from stages.common.runner import this_machine

SHARE = {"prepare": 2, "validate": 3, "finetune": 8, "merge": 3, "evaluate": 8, "export": 3, "register": 3}  # of 30
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
TARGETS = ("everything", "everything", "dvc", "stage")
CHAIN = 10  # kills of one run


@dataclass
class Fault:
    """One that was tried. `note` says what was seen."""

    name: str
    survived: bool
    different: int
    lost: int
    tries: int
    tracebacks: int
    seconds: float
    note: str


def judged(place: Place, project: Project | None, began: float, hurt: hurts.Hurt, name: str = "kills") -> Fault:
    """After the last restart: is everything there, and the same?"""
    wrong = different(place.expected, project.outputs()) if project else []
    if project:
        keep_different(place.folder / "different" / name, project.folder, wrong)
    lost = hurt.lost + (project.lost() + abs(project.versions() - hurt.versions) if project else 0)
    ended = hurt.ended
    note = "; ".join([*hurt.notes, *(f"differs: {path}" for path in wrong)])
    if ended.code:
        note += "; ended with: " + ended.text.strip()[-600:]
    note = note.replace(f"{place.folder}/", "")  # where it lay is nobody's business
    well = ended.code == 0 and not wrong and not lost
    return Fault(name, well, len(wrong), lost, ended.tries, ended.tracebacks, round(time.time() - began, 1), note)


def keep_different(there: Path, folder: Path, wrong: Sequence[str]) -> None:
    """To be looked at, beside the right ones in `finished`."""
    for path in wrong:
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        if (folder / path).is_file():
            shutil.copy(folder / path, there / path)


# --- kills -----------------------------------------------------------------------------------------------------------


def plan(kills: int) -> list[str]:
    """The stage of each kill: in proportion, every stage once before any twice, in the order of a run."""
    order = sorted(
        ((number + 0.5) / share, STAGES.index(stage), stage)
        for stage, share in SHARE.items()
        for number in range(share * (1 + kills // 30))
    )
    firsts = sorted(order, key=lambda one: (one[0] > 0.5 / SHARE[one[2]], one[0]))
    return sorted((stage for _, _, stage in firsts[:kills]), key=STAGES.index)


def chains(kills: int) -> list[list[str]]:
    """Each hits stages from first to last."""
    stages, count = plan(kills), -(-kills // CHAIN)
    return [stages[number::count] for number in range(count)]


def kill_chain(place: Place, number: int, stages: Sequence[str]) -> Iterator[Fault]:
    """One run, killed again and again; its end is the verdict on each of its kills."""
    project, faults, began = place.fresh(f"kills {number}"), [], time.time()
    durations = read_json(place.folder / "durations.json")
    for stage in stages:
        faults.append(one_kill(place, project, stage, durations[stage]))
        print(f"  {faults[-1].note}", flush=True)
    hurt = hurts.Hurt(project.repro(), versions=1)
    end = judged(place, project, began, hurt)
    print(f"  end of the run: {end}", flush=True)
    for fault in faults:
        fault.survived = end.survived and not fault.lost
        fault.different, fault.note = end.different, f"{fault.note}; {end.note}".strip("; ")
        fault.tracebacks = end.tracebacks
        yield fault
    finish(project)


def one_kill(place: Place, project: Project, stage: str, duration: float) -> Fault:
    """Without a kill where the stage had ended before: then it does not count as tried."""
    began, draw = time.time(), place.draw
    number, target, moment = draw.choice(SIGNALS), draw.choice(TARGETS), draw.uniform(0, 0.9 * duration)
    for _ in range(TRIES):  # an orphan of the kill before may be at work yet, and this run end by saying so
        with project.start("repro") as run:
            there = run.wait_for(stage)
            run.stay_in(stage, moment)
            alive = run.process.poll() is None
            hit = run.kill(number, target) or "DVC, between stages"
            run.ended()
        if there and alive:
            break
        project.wait_for_orphans()
    note = (
        f"{number.name} of {target} in {hit}, {moment:.1f} s after {stage} began" if alive else "no kill: it had ended"
    )
    seconds = round(time.time() - began, 1)
    return Fault(f"kill in {stage}", True, 0, project.lost(), int(alive), 0, seconds, note)


# --- all of it -------------------------------------------------------------------------------------------------------


def undisturbed(folder: Path, *, small: bool) -> tuple[Project, dict[str, str]]:
    """Made once in a folder; its stages' durations are where the kills' moments come from."""
    project, record = Project(folder / "finished"), folder / "expected.json"
    if record.exists():
        return project, read_json(record)
    shutil.rmtree(project.folder, ignore_errors=True)
    project, durations = Project.clone(project.folder, small=small), {}
    with project.start("repro") as run:
        for stage in STAGES:
            run.wait_for(stage)
            began = time.monotonic()
            while (now := run.stage()) and now[0] == stage:
                time.sleep(0.1)
            durations[stage] = time.monotonic() - began
        ended = run.ended()
    if ended.code:
        sys.exit(f"the undisturbed run failed:\n{ended.text[-3000:]}")
    write_json(folder / "durations.json", durations)
    write_json(record, project.outputs())
    return project, read_json(record)


def finish(project: Project) -> None:
    """Nothing that was started stays, and no copy of a run."""
    project.end_all()
    shutil.rmtree(project.folder, ignore_errors=True)


def other(place: Place, name: str, hurt: Callable[[hurts.Room], hurts.Hurt]) -> Fault:
    began = time.time()
    room = hurts.Room(place, name)
    try:
        found = hurt(room)
        return judged(place, room.made, began, found, name)
    except hurts.NotHere as error:
        return Fault(name, False, 0, 0, 0, 0, 0.0, f"not tried: {error}")
    finally:
        if room.made:
            finish(room.project)


def faults(place: Place, chosen: argparse.Namespace, done: set[str]) -> Iterator[list[Fault]]:
    if chosen.only in (None, "kills"):
        for number, stages in enumerate(chains(chosen.kills)):
            if f"kills {number}" not in done:
                yield list(kill_chain(place, number, stages))
    for name, hurt in hurts.ALL.items():
        if chosen.only in (None, name) and name not in done:
            yield [other(place, name, hurt)]


@contextmanager
def workplace(chosen: argparse.Namespace) -> Iterator[Path]:
    if chosen.folder:
        chosen.folder.mkdir(parents=True, exist_ok=True)
        yield chosen.folder.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        yield Path(name).resolve()


def summary(found: Sequence[Fault]) -> dict[str, int]:
    tried = [fault for fault in found if fault.tries]
    return {
        "faults tried": len(tried),
        "survived": sum(fault.survived for fault in tried),
        "outputs different": sum(fault.different for fault in tried),
        "data lost": sum(fault.lost for fault in tried),
        "tracebacks shown": sum(fault.tracebacks for fault in tried),
        "not tried": len(found) - len(tried),
    }


def keep(path: Path, chosen: argparse.Namespace, found: Sequence[Fault]) -> None:
    record = {
        "command": f"python -m benchmarks.chaos --kills {chosen.kills} --seed {chosen.seed}"
        + (" --small" if chosen.small else ""),
        "machine": this_machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "torch's own choice"),
        "summary": summary(found),
        "faults": [asdict(fault) for fault in found],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Command(
        __doc__,
        reads="this repository as it is committed",
        writes="--results (JSON) as they come, and a temporary folder or --folder",
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kills, or one name of --list")
    parser.add_argument("--small", action="store_true", help="few epochs and images")
    parser.add_argument("--folder", type=Path, help="kept, and gone on with; otherwise a temporary one")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/chaos.json")
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args(arguments)
    if chosen.only and chosen.only not in ("kills", *hurts.ALL):
        parser.error(f"--only {chosen.only}: expected kills, {', '.join(hurts.ALL)}")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    chosen = parse(arguments)
    if chosen.list:
        print("kills", *hurts.ALL, sep="\n")
        return 0
    found = []
    with workplace(chosen) as folder:
        finished, expected = undisturbed(folder, small=chosen.small)
        place = Place(folder, finished, expected, random.Random(chosen.seed), chosen.small)
        journal = folder / "faults.json"
        found = [Fault(**one) for one in read_json(journal)] if journal.exists() else []
        done = set(read_json(folder / "done.json")) if (folder / "done.json").exists() else set()
        for new in faults(place, chosen, done):
            found += new
            done.add(new[0].name if len(new) == 1 else f"kills {len([d for d in done if d.startswith('kills ')])}")
            write_json(journal, [asdict(fault) for fault in found])
            write_json(folder / "done.json", sorted(done))
            keep(chosen.results, chosen, found)
            for fault in new:
                print(f"{'survived' if fault.survived else 'NOT SURVIVED'}: {fault.name} ({fault.note})", flush=True)
    print(summary(found))
    return int(any(fault.tries and not fault.survived for fault in found))


if __name__ == "__main__":
    sys.exit(main())
