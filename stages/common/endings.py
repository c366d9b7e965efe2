"""How a stage ended, for whoever started it through DVC, which hands on no exit code.

    forget("merge", folder)        # then `dvc repro merge`, and then
    ended("merge", folder)         # -> Ending(code=69, message="another process ..."), or None

None: it ended well, or it crashed before it could say anything. The codes are in errors.py. The file lies in the
folder that the stage stands in, never in AUTOLORA_WORK, which several workspaces share.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Ending(NamedTuple):
    code: int  # MEND, BUSY, AGAIN or INTERRUPTED
    message: str


def path_of(stage: str, folder: str | Path = ".") -> Path:
    return Path(folder) / ".work/endings" / f"{stage}.json"


def forget(stage: str, folder: str | Path = ".") -> None:
    """Before the stage starts, so that what is found afterwards is its own."""
    with suppress(OSError):
        path_of(stage, folder).unlink()


def ended(stage: str, folder: str | Path = ".") -> Ending | None:
    try:
        found = json.loads(path_of(stage, folder).read_text(encoding="utf-8"))
        return Ending(int(found["code"]), str(found["message"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def tell(stage: str, code: int, message: str) -> Ending:
    """Of several processes of one stage the first to tell knows the reason: what it wrote stays, and is returned."""
    mine = Ending(code, message)
    if int(os.environ.get("RANK", 0)) > 0:
        return mine
    path = path_of(stage)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            json.dump(mine._asdict(), file)
    except FileExistsError:
        return ended(stage) or mine
    except OSError:  # a full disk: the message on stderr must do
        pass
    return mine
