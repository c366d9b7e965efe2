"""Run a command under the process guard: its lines as they come, a time limit, and nothing left behind."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipelines.execution import process_guard

LINE_END = re.compile(rb"[\r\n]+")
KEPT = 40  # last lines that an error may quote


class CommandFailed(Exception):
    """Its exit status and its last lines."""


def shown(command: Sequence[str]) -> str:
    return " ".join(command).removeprefix(f"{sys.executable} -m ")


class TimeLimit(CommandFailed):
    """Killed because it did not end."""


def run(
    command: Sequence[str], folder: Path, env: Mapping[str, str], seconds: float, say: Callable[[str], None]
) -> list[str]:
    """Hand each line to `say` as it comes; return the last ones, or raise what went wrong."""
    kept: deque[str] = deque(maxlen=KEPT)
    with started(command, folder, env) as process:
        try:
            for line in lines_until(process, time.monotonic() + seconds):
                kept.append(line)
                say(line)
        except TimeoutError:
            message = f"{shown(command)}: no end after {seconds:g} s, killed with its children"
            raise TimeLimit(message) from None
        finally:
            process.stdin.close()  # type: ignore[union-attr]  # the guard ends the family
        status = process.wait()
    if status:
        raise CommandFailed("\n".join([f"{shown(command)}: exit status {status}", *kept]))
    return list(kept)


def started(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own: a signal to the caller's group must not take the guard away before its children."""
    return subprocess.Popen(
        [sys.executable, "-P", process_guard.__file__, *command],
        cwd=folder,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        bufsize=0,
    )


def lines_until(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Lines end with \\n or with the \\r of a progress bar. TimeoutError when the deadline passes first."""
    assert process.stdout is not None
    rest, file = b"", process.stdout.fileno()
    while True:
        if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        chunk = os.read(file, 65536)
        *whole, rest = LINE_END.split(rest + chunk) if chunk else (rest, b"")
        yield from (line.decode(errors="replace").rstrip() for line in whole if line.strip())
        if not chunk:
            return


def environment(**extra: str) -> dict[str, str]:
    """This interpreter's `python` first on the path: stages are started as plain `python -m ...`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "DO_NOT_TRACK": "true", **extra}


def end_with_parent(seconds: float = 1.0) -> None:
    """Watch the process that started this one, and end with it."""
    parent = os.getppid()
    end_when(lambda: os.getppid() != parent, seconds)


def end_when(over: Callable[[], bool], seconds: float, code: int = 143) -> None:
    """Look again and again, beside the work; then end at once: the guard sees the pipe close and cleans up."""

    def watch() -> None:
        while not over():
            time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=watch, daemon=True).start()
