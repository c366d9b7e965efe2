"""How a module that is run by hand explains itself, and refuses what it does not know.

    parser = Command(__doc__, reads="the images in FOLDER", writes="one line for each")
    parser.add_argument("folder")
    chosen = parser.parse_args()

`--help` shows the docstring, then what is read and written. An argument that the module does not have is refused, with
the nearest that it has.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, NoReturn


class Command(argparse.ArgumentParser):
    """An ArgumentParser with our help; its subcommands are Commands, too."""

    def __init__(self, doc: str | None = None, *, reads: str = "", writes: str = "", **options: Any) -> None:
        self.known: set[str] = options.pop("known", set())
        self.given: list[str] = []
        options.setdefault("prog", _program())
        said = [line("reads", reads), line("writes", writes)] if reads else []
        super().__init__(
            description=doc,
            epilog="\n".join(said),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        action = super().add_argument(*names, **options)
        if action.help != argparse.SUPPRESS:
            self.known.update(action.option_strings)
        return action

    def add_subparsers(self, **options: Any) -> Any:
        options.setdefault("parser_class", partial(Command, known=self.known))
        return super().add_subparsers(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        chosen, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(unknown_argument(unknown[0], self.known))
        return chosen

    def error(self, message: str) -> NoReturn:
        unknown = [word for word in self.given if word.startswith("--") and word.partition("=")[0] not in self.known]
        if unknown and "required" in message:  # what is missing may be what is misspelt
            message = f"{message}; {unknown_argument(unknown[0], self.known)}"
        self.exit(2, f"{self.prog}: {message}\n`{self.prog} --help` says what it may be told.\n")


def at_least_one(text: str) -> int:
    """For `type=` of an argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, not {text}")
    return int(text)


def line(head: str, text: str) -> str:
    """One entry of the list at the end of a help."""
    return textwrap.fill(text, 100, initial_indent=f"{head:12}", subsequent_indent=" " * 12, break_on_hyphens=False)


def unknown_argument(given: str, known: Iterable[str]) -> str:
    name = given.partition("=")[0]
    said = f"there is no argument {name}"
    if near := nearest(name, known):
        return f"{said}: did you mean {near}?"
    return f"{said}: it takes {', '.join(sorted(known))}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """What was probably meant."""
    found = get_close_matches(name, list(known), 1, 0.6)
    return found[0] if found else None


def _program() -> str:
    """As it was started: `python -m package.module`, or a file's name."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"
