"""What stops a stage, and the exit code that says what it takes to go on (Python's own are 1 and 2, DVC's 255)."""

from __future__ import annotations

MEND, BUSY, AGAIN, INTERRUPTED = 65, 69, 75, 130


class StageError(Exception):
    """A failure that the user can mend: the message says what is wrong, where, and what to do."""

    code = MEND


class Busy(StageError):
    """Another process is at work on the same: wait for it."""

    code = BUSY


class TryAgain(StageError):
    """Nothing is wrong here: a server was away, or a process died. The same command may succeed later."""

    code = AGAIN
