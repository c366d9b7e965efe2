"""Robustness of any classifier, from the command line.

    autolora attack model.onnx --data FOLDER --eps 8/255     AutoAttack on the file that ships, whoever trained it
    autolora show FILE                                       what a file, or a report, says of itself
    autolora verify FILE                                     whether its hashes hold

Exit codes: 0, it is done; 1, it is done and fewer images stand than --require-robust asks for, or a hash does not hold;
2, something must be mended first, in one line; 3, an error that nobody foresaw; 130, interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from autolora.command.attack import add_to as add_attack
from autolora.command.files import add_to as add_files
from autolora.command.options import OPTIONS
from autolora.common.command_line import Command
from autolora.common.errors import BadArgument
from autolora.common.files import AtWork
from autolora.common.progress import named
from autolora.common.shared_out import OneEnded

MEND, UNFORESEEN, INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> None:
    script = {"prog": "autolora"} if Path(sys.argv[0]).name == "autolora" else {}
    parser = Command(
        __doc__, reads="a model and images", writes="a folder with the report, or text on stdout", **script
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add_attack(commands)
    add_files(commands)
    chosen = parser.parse_args(arguments)
    try:
        with named(chosen.command):
            sys.exit(chosen.run(chosen))
    except (ValueError, OSError, AtWork, OneEnded) as error:
        print(f"{chosen.command}: {_one_line(error)}", file=sys.stderr)
        sys.exit(MEND)
    except Exception as error:  # 1 would say that fewer images stand
        print(f"{chosen.command}: {_unforeseen(error)}", file=sys.stderr)
        sys.exit(UNFORESEEN)
    except KeyboardInterrupt:
        print(f"{chosen.command}: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _unforeseen(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(f"{type(error).__name__} {error}".split())[:300]
    return f"an error that nobody foresaw, please report it: {said} ({Path(place.filename).name}, line {place.lineno})"


def _one_line(error: Exception) -> str:
    """The library names its arguments; who types them knows them as options."""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"--{said}" if isinstance(error, BadArgument) and error.argument in OPTIONS else said
