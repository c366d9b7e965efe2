"""`python -m MODULE ARGUMENT` many times, each in a process of its own that has torch, MLflow and Prefect imported.

Read from stdin and run in the clone: [[module, argument], ...]. Written to stdout: [[exit code, stdout, stderr], ...].
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable

LARGE = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "mlflow",
    "prefect",
    "great_expectations",
    "scipy.stats",
)


def called(module: str, argument: str) -> tuple[int, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [sys.argv[0], argument]
            os._exit(exit_code(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True)))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return code, _text(out), _text(err)


def exit_code(main: Callable[[], object]) -> int:
    """What the interpreter would end with."""
    try:
        main()
        code: object = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # told as the interpreter tells it; the parent goes on
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _text(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    return file.read().decode()  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.path[0] = ""  # as with `python -m`: what is run is the clone's
    for name in LARGE:
        importlib.import_module(name)
    json.dump([called(*each) for each in json.load(sys.stdin)], sys.stdout)
