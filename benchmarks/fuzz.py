"""Feed every door of the pipeline with broken and hostile input, and count what goes wrong.

    python -m benchmarks.fuzz                                   22,000 inputs, about 2,400 a door
    python -m benchmarks.fuzz --only checkpoints --inputs 300 --seed 1

Counted: crashes (an exception that no user is meant to see, or a dead process), hangs (more than 20 s), memory (more
than 1 GB for one input), and code executed (a process, a connection or a foreign module that the input brought about).
Each door runs in a process of its own; one that dies is started again with other inputs. Inputs are hypothesis's:
the same seed gives the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autolora.common.command_line import Command
from autolora.common.files import write_json
from benchmarks import _fuzz_served as served
from stages.common.runner import this_machine

ROOT = Path(__file__).resolve().parent.parent
EACH = 2_400
SECONDS, MEMORY_MB = 20, 1024
DEATHS = 5  # processes of one door, before it is given up
LONGEST = 4_000  # letters that a readable message may have
MARKER = "PLANTED_MARKER"
STARTS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pty.spawn")
NAMES = (
    "params.yaml", "tables of images", "manifests", "images", "checkpoints", "safetensors headers", "ONNX files",
    "sweep grids", "flow parameters", served.NAME,
)  # fmt: skip


@dataclass
class Finding:
    door: str
    kind: str  # crash | hang | memory | code
    what: str  # the error and where it comes from
    example: str
    count: int = 1


class Hang(BaseException):
    pass


# --- one door, in a process of its own -------------------------------------------------------------------------------


class Watch:
    """Looks at one input after the other, and writes down what it did."""

    def __init__(self, name: str, folder: Path) -> None:
        from benchmarks._fuzz_targets import doors

        self.name, self.door, self.folder = name, doors()[name], folder
        self.findings: dict[tuple[str, str], Finding] = {}
        self.tried, self.refused, self.started = 0, 0, ""
        sys.addaudithook(self.audit)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.started is not None and event in STARTS:
            words = str(arguments[:2])
            if not (event == "subprocess.Popen" and str(arguments[0]) == "git"):  # revisions are git's to resolve
                self.started = f"{event}{words[:200]}"

    def look(self, given: Any) -> None:
        self.tried += 1
        (self.folder / "current").write_text(shown(given))
        before, self.started = peak_memory_reset(), ""
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            self.door.opened(given)
        except self.door.may_raise as error:
            self.refused += 1
            if why := unreadable(error):
                self.note("crash", f"{why}: {where(error)}", given)
        except Hang as error:
            self.note("hang", where(error), given)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.note("crash", where(error), given)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if (more := peak_memory() - before) > MEMORY_MB:
            self.note("memory", f"{more} MB", given)
        if self.started or Path(os.environ[MARKER]).exists() or "benchmarks._fuzz_planted" in sys.modules:
            self.note("code", self.started or "planted code ran", given)
            Path(os.environ[MARKER]).unlink(missing_ok=True)
            sys.modules.pop("benchmarks._fuzz_planted", None)

    def note(self, kind: str, what: str, given: Any) -> None:
        if found := self.findings.get((kind, what)):
            found.count += 1
        else:
            self.findings[kind, what] = Finding(self.name, kind, what, shown(given))

    def record(self) -> None:
        findings = [asdict(finding) for finding in self.findings.values()]
        write_json(self.folder / "record.json", {"tried": self.tried, "refused": self.refused, "findings": findings})


def shown(given: Any) -> str:
    return repr(given)[:1500].encode("utf-8", "backslashreplace").decode()


def where(error: BaseException) -> str:
    """Type, first line, and the last two frames in code of this repository."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if f.filename.startswith(str(ROOT)) and ".venv" not in f.filename
    ]
    places = [f"{Path(f.filename).relative_to(ROOT)}:{f.name}" for f in frames if "benchmarks" not in f.filename][-2:]
    return f"{type(error).__name__} in {' > '.join(places) or 'the benchmark'}"


def unreadable(error: BaseException) -> str | None:
    text = str(error)
    if not text.strip():
        return "no message"
    if len(text) > LONGEST:
        return "a message of thousands of letters"
    return "a message that names an address" if " object at 0x" in text else None


def peak_memory_reset() -> int:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """MB, since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    return 0


def hang(*_: Any) -> None:
    raise Hang(f"no end after {SECONDS} s")


def one_door(name: str, inputs: int, seed: int, folder: Path) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    watch = Watch(name, folder)
    signal.signal(signal.SIGALRM, hang)
    os.chdir(tempfile.mkdtemp(dir=folder))

    @seeded(seed)
    @settings(
        max_examples=inputs, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(watch.door.inputs)
    def every(value: Any) -> None:
        watch.look(value)
        if watch.tried % 50 == 0:
            watch.record()

    with quiet():
        every()
    watch.record()


@contextmanager
def quiet() -> Iterator[None]:
    """Decoders talk; what matters arrives as an exception."""
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(1), os.dup(2)
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)


# --- all doors -------------------------------------------------------------------------------------------------------


def door(name: str, inputs: int, seed: int) -> dict[str, Any]:
    """Until so many inputs were tried; a process that dies is a finding, and another one goes on."""
    began, tried, refused, findings, deaths = time.time(), 0, 0, [], 0
    while tried < inputs and deaths < DEATHS:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as text:
            folder = Path(text)
            died = lived(name, inputs - tried, seed + deaths, folder)
            record = json.loads((folder / "record.json").read_text()) if (folder / "record.json").exists() else {}
            tried, refused = tried + record.get("tried", 0), refused + record.get("refused", 0)
            findings += [Finding(**one) for one in record.get("findings", [])]
            if died is None:
                break
            deaths += 1
            tried += 1
            current = folder / "current"
            findings.append(Finding(name, *died, current.read_text() if current.exists() else "before the first input"))
    return {
        "door": name,
        "tried": tried,
        "refused with a message": refused,
        "seconds": round(time.time() - began, 1),
        "findings": [asdict(finding) for finding in findings],
    }


def lived(name: str, inputs: int, seed: int, folder: Path) -> tuple[str, str] | None:
    """None, or (crash or hang, how it ended)."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--only", name, "--inputs", str(inputs), "--seed", str(seed)]
    env = os.environ | {MARKER: str(folder / "marker"), "OMP_NUM_THREADS": "1"}
    with open(folder / "said", "w") as said:
        child = subprocess.Popen([*command, "--child", str(folder)], cwd=ROOT, env=env, stdout=said, stderr=said)
        try:
            while child.poll() is None:
                time.sleep(0.2)
                current = folder / "current"
                if current.exists() and time.time() - current.stat().st_mtime > 3 * SECONDS:
                    return "hang", "no end in foreign code; the process was killed"
        finally:
            child.kill()
            child.wait()
    if child.returncode == 0:
        return None
    return "crash", f"the process ended with {child.returncode}: {(folder / 'said').read_text()[-500:]}"


def summary(records: list[dict[str, Any]]) -> dict[str, int]:
    kinds = Counter(finding["kind"] for record in records for finding in record["findings"])
    return {
        "inputs tried": sum(record["tried"] for record in records),
        "crashes without a readable message": kinds["crash"],
        "hangs": kinds["hang"],
        "memory beyond 1 GB": kinds["memory"],
        "code executed": kinds["code"],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = Command(
        __doc__,
        reads="nothing: the inputs are made up",
        writes="--results (JSON), and a table on stdout",
    )
    parser.add_argument("--inputs", type=int, default=EACH, help=f"for each door (default {EACH})")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=NAMES, help="one door; written with --results alone")
    parser.add_argument("--results", type=Path, help="(default benchmarks/results/fuzz.json)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        one_door(chosen.only, chosen.inputs, chosen.seed, chosen.child)
        return 0
    results = chosen.results or (None if chosen.only else ROOT / "benchmarks/results/fuzz.json")
    only = f" --only {chosen.only}" if chosen.only else ""
    records: list[dict[str, Any]] = []
    for name in [chosen.only] if chosen.only else NAMES:
        run = served.door if name == served.NAME else door
        records.append(run(name, chosen.inputs, chosen.seed))
        print(f"{name}: {records[-1]['tried']} inputs, {records[-1]['refused with a message']} refused with a message, "
              f"{records[-1]['seconds']} s", flush=True)  # fmt: skip
        for found in records[-1]["findings"]:
            print(
                f"  {found['kind']} ({found['count']} times): {found['what']}\n    {found['example'][:300]}", flush=True
            )
        machine = this_machine()
        command = f"python -m benchmarks.fuzz --inputs {chosen.inputs} --seed {chosen.seed}{only}"
        said = {"command": command, "machine": machine, "summary": summary(records), "doors": records}
        if results:
            write_json(results, said)
    print(summary(records))
    return int(any(record["findings"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
