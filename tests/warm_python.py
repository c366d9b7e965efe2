"""A `python` that has torch, MLflow and the other large packages imported before it starts: a fork of one process.

    with warm(folder) as python:                          a file in the folder, which may stand first on PATH
        subprocess.run([python, "-m", "stages.prepare"], cwd=..., env=...)

Each is a process of its own with the folder, environment, open files 0 to 2 and exit code of any other, and it dies
with its caller. What a large package reads when it is imported, all of them share: a test about that, about the start
of Python or about signals takes `sys.executable`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

# Without Prefect, which reads the address of its server when it is imported.
LARGE = (
    "torch", "torchvision", "timm", "onnx", "onnxruntime", "mlflow", "great_expectations", "scipy.stats", "dvc.cli",
)  # fmt: skip
QUIET = {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}

# What is called: it hands over its arguments, its environment and its files, and ends as the fork does.
CALLER = """\
#!{python} -ISs
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([os.getcwd(), dict(os.environ), [*{first!r}, *sys.argv[1:]]]).encode()
socket.send_fds(server, [b"%8d" % len(call)], [0, 1, 2])
server.sendall(call)
fork = int(server.recv(8))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(fork, number))
code = int(server.recv(8) or 1)
if code < 0:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
PROGRAMS = {"python": [], "dvc": ["-m", "dvc"]}


@contextmanager
def warm(folder: Path) -> Iterator[str]:
    """The path of `python`, with `dvc` beside it. They work within this context."""
    address = str(folder / "socket")
    for name, first in PROGRAMS.items():
        (folder / name).write_text(CALLER.format(python=sys.executable, address=address, first=first))
        (folder / name).chmod(0o755)
    command = [sys.executable, __file__, address]
    with subprocess.Popen(command, stdin=-1, stdout=-1, env=os.environ | QUIET) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield str(folder / "python")
        finally:
            server.kill()


# --- the process that has everything imported -------------------------------------------------------------------------


def serve(address: str) -> None:
    """Until its caller is gone, which closes stdin."""
    for name in LARGE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork's collector would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks here
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(64)
        print("ready", flush=True)
        while 0 not in select.select([0, door], [], [])[0]:
            caller, _ = door.accept()
            if not os.fork():
                door.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                attend(caller)
            caller.close()


def attend(caller: socket.socket) -> NoReturn:
    """Run what is asked for in a fork, and tell how it ended; kill it where the caller is killed."""
    size, files, _, _ = socket.recv_fds(caller, 8, 3)
    folder, environment, words = json.loads(caller.recv(int(size), socket.MSG_WAITALL))
    if not (fork := os.fork()):
        caller.close()
        os._exit(exit_code(lambda: run(folder, environment, files, words)))
    for number in files:
        os.close(number)
    caller.sendall(b"%8d" % fork)
    if caller in select.select([caller, os.pidfd_open(fork)], [], [])[0]:
        os.kill(fork, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    with suppress(OSError):
        caller.sendall(b"%8d" % code)
    os._exit(0)


def run(folder: str, environment: dict[str, str], files: list[int], words: list[str]) -> None:
    """As the interpreter does with these words."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    random.seed()
    kind, *rest = words or [""]
    if kind.startswith("-") and kind not in ("-m", "-c"):
        os.execv(sys.executable, [sys.executable, *words])
    first = folder if kind == "-m" else "" if kind == "-c" else str(Path(kind).parent.absolute())
    named = environment.get("PYTHONPATH", "").split(os.pathsep) if environment.get("PYTHONPATH") else []
    sys.path[:] = [first, *named, *sys.path[1:]]
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


def exit_code(main: Callable[[], None]) -> int:
    """What the interpreter would end with, after all that it does at its end."""
    code: object = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code & 0xFF


if __name__ == "__main__":
    serve(sys.argv[1])
