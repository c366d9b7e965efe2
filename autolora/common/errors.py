"""The library's own errors: what a caller can mend, said in one line that names the argument."""

from __future__ import annotations

from typing import Any

DIVERGED = "training diverged"  # how its message begins: a search goes by it, over processes and machines


class BadArgument(ValueError):
    """An argument that cannot be meant. `argument` is its name, so that a caller can say where it was set."""

    def __init__(self, argument: str, value: Any, reason: str) -> None:
        super().__init__(argument, value, reason)  # what pickle calls it with again, in another process
        self.argument, self.value, self.reason = argument, value, reason

    def __str__(self) -> str:
        return f"{self.argument} is {self.value!r}: {self.reason}"


def first_line(error: BaseException) -> str:
    """What another library's error says, without the pages that follow; the name of its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class Words(str):
    """A value that is described, where showing it would be pages: "x is of shape (4, 32, 32)"."""

    def __repr__(self) -> str:
        return str(self)
