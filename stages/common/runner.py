"""What every stage needs around its one function: an error that reads well, a place to go on from, times on record.

DVC deletes a stage's outs before the command runs, so progress lives outside them: `.work/<stage>/<key>`, where the key
is a hash of all that determines the work (`AUTOLORA_WORK` moves `.work`, to shared storage for instance).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from autolora.common.errors import BadArgument
from autolora.common.files import AtWork, file_sha256, locked, write_json
from autolora.common.processes import peak_memory
from autolora.common.progress import named
from stages.common.clone import seen_from_clone
from stages.common.endings import forget, tell
from stages.common.errors import BUSY, INTERRUPTED, MEND, Busy, StageError
from stages.common.scrub import scrubbed, scrubbing
from stages.common.views import key_of

_WHOSE = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
WRITING = {getattr(errno, name) for name in ["ENOSPC", "EDQUOT", "EROFS", "EEXIST"]}
EITHER_WAY = ["EACCES", "EPERM", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP", "EMFILE", "ENFILE", "EIO", "ESTALE"]
OF_THE_DISK = WRITING | {getattr(errno, name) for name in EITHER_WAY}


def main(stage: Callable[[], None]) -> None:
    """Run a stage; what a user can mend becomes one line on stderr and an exit code of errors.py, not a traceback.

    A ValueError of ours reads like one of a library's, so AUTOLORA_TRACEBACK=1 shows where it came from.
    """
    name = stage.__name__
    if "RANK" not in os.environ:  # a process among several leaves what the others have told
        forget(name)
    try:
        with named(name), scrubbing():
            stage()
    except AtWork as error:
        _end(name, BUSY, str(error))
    except (StageError, ValueError, FileNotFoundError) as error:
        if os.environ.get("AUTOLORA_TRACEBACK"):
            raise
        _end(name, getattr(error, "code", MEND), _in_keys(name, error))
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        what = "write" if error.errno in WRITING else "read or write"
        _end(
            name,
            MEND,
            f"cannot {what} {error.filename or 'its files'}: {error.strerror}. "
            "Mend that and run `dvc repro` again: it goes on where it stopped; "
            "`dvc checkout` brings the previous outputs back.",
        )
    except KeyboardInterrupt:
        _end(name, INTERRUPTED, "interrupted; `dvc repro` goes on where it stopped")


def _end(name: str, code: int, message: str) -> NoReturn:
    message = scrubbed(message)
    print(f"{name}: {message}", file=sys.stderr)
    sys.exit(tell(name, code, message).code)


def _in_keys(stage: str, error: Exception) -> str:
    """The library names its arguments (others than the one at fault in `backticks`); the user has set keys."""
    if not isinstance(error, BadArgument):
        return str(error)
    reason = re.sub(r"`(\w+)`", lambda found: key_of(stage, found[1]), error.reason)
    return f"{key_of(stage, error.argument)} is {error.value!r}: {reason}"


def work_root() -> Path:
    """One for a clone and all its temporary copies: what one of them has finished, no other does again."""
    return seen_from_clone(os.environ.get("AUTOLORA_WORK") or ".work")


def work_dir(stage: str, **determines: Any) -> Path:
    """The folder for the progress of exactly this work: same inputs, same folder, also after a crash."""
    key = hashlib.sha256(json.dumps(determines, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = work_root() / stage / key
    path.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # it may be another user's
        os.utime(path)  # when it was last used: stages.work removes what is not used for long
    return path


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Two processes never work on the same key at once."""
    try:
        with locked(folder / "lock"):
            yield
    except AtWork as error:
        raise Busy(str(error)) from None


def processes_asked_for() -> int | None:
    """`AUTOLORA_PROCESSES`: no param, since the result does not depend on it."""
    wanted = os.environ.get("AUTOLORA_PROCESSES")
    if wanted is not None and not (wanted.isdigit() and int(wanted) > 0):
        raise StageError(f"AUTOLORA_PROCESSES is {wanted!r}: expected a whole number from 1")
    return None if wanted is None else int(wanted)


@contextmanager
def timed(stage: str, made: str | Path | None = None) -> Iterator[dict[str, Any]]:
    """Seconds and peak memory into reports/timing/<stage>.json; the stage may add figures of its own to the record.

    made: an output by whose content a reader knows whether the record is of what lies there now. DVC's cache brings
    back the outputs of earlier params, and not this file.
    """
    record: dict[str, Any] = {}
    start, before = time.perf_counter(), _processor_seconds()
    yield record
    record |= {
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(_processor_seconds() - before, 2),
        "peak_memory_mb": round(peak_memory() / 2**20),
        "machine": this_machine(),
        "python": platform.python_version(),
        **_accelerators(time.perf_counter() - start),
    }
    if made:
        record["made"] = {str(made): file_sha256(made)}
    write_json(f"reports/timing/{stage}.json", record)


def this_machine() -> str:
    """Linux x86_64, 2 cores, AVX512 with bfloat16: what decides how long a stage takes, and how it rounds. Of the
    instructions torch knows; a stage that does without it says nothing of them."""
    said = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if "torch" not in sys.modules:
        return said
    import torch

    from autolora.backbones.fold_batchnorm import has_bfloat16

    low = " with bfloat16" if has_bfloat16(torch.device("cpu")) else ""
    return f"{said}, {torch.backends.cpu.get_cpu_capability()}{low}"


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for: on a busy machine they say more than the clock."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _WHOSE))


def _accelerators(seconds: float) -> dict[str, Any]:
    """What a stage took of GPUs, where it used them: one for each of its processes."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    hours = seconds / 3600 * int(os.environ.get("WORLD_SIZE", 1))
    return {"gpu": torch.cuda.get_device_name(), "gpu_hours": round(hours, 4)}
