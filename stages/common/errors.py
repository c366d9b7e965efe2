"""What stops a stage."""

from __future__ import annotations


class StageError(Exception):
    """A failure that the user can mend: the message says what is wrong, where, and what to do."""
