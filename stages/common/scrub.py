"""What must be neither shown nor stored: passwords and tokens, in addresses and wherever else they turn up in a text.

    scrubbed("cannot reach postgresql://me:secret@host/db?password=x")   ->   "... postgresql://***@host/db?password=***"

It rather takes too much than too little: a password may hold signs that an address should not.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
SHORTEST = 4  # letters of a secret that is hidden wherever it stands: "a" would take half of every sentence
TOKEN = 16  # letters from which a user's name without a password is taken for a token
# Settings of ours and of the clients that stages use, whose values are secrets or addresses that may hold some.
SECRETS = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|API_KEY|ACCESS_KEY|AUTH_STRING|CREDENTIAL)", re.IGNORECASE)
ADDRESSES = re.compile(r"(_URI|_URL|_ENDPOINT|_DSN)$", re.IGNORECASE)
# Names after which a secret stands: ?password=..., PWD={...};, api_key=.... A name is looked for from its first letter
# alone, and what follows is bounded: a hostile text of 50,000 letters took two minutes.
NAMED = re.compile(
    r"(?<![\w.-])([\w.-]*"
    r"(?:password|passwd|pwd|token|secret|signature|credential|api_?key|access_?key|odbc_connect"
    r"|\bsig(?=\s{0,99}(?:=|%3D)))"  # Azure's signed addresses; not of design= or sigma=
    r"[\w-]{0,99}\s{0,99}(?:=|%3D)\s*)(\{[^}]*\}|'[^']*'|\"[^\"]*\"|[^\s&;,'\")]+)",
    re.IGNORECASE,
)
ADDRESS = re.compile(r"((?<![\w+.-])[\w+.-]+://)([^\s'\"<>]+)")


def scrubbed(text: str) -> str:
    """The text without secrets: those that the environment holds, and all that looks like one."""
    for secret in _known():
        text = text.replace(secret, HIDDEN)
    return NAMED.sub(lambda found: found[1] + HIDDEN, ADDRESS.sub(_without_user, text))


def _without_user(address: re.Match[str]) -> str:
    """Everything before the last @, where a user's name can stand at all: also one with unescaped / and @."""
    scheme, rest = address.groups()
    _, at, host = rest.rpartition("@")
    first = rest.partition("/")[0]
    port = first.rpartition(":")[2] if ":" in first else ""
    held = at and ("@" in first or (port != "" and not port.isdigit()))
    return f"{scheme}{HIDDEN}@{host}" if held else address[0]


def _known() -> list[str]:
    """Longest first, each as it is written in an address and as it is meant."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if SECRETS.search(name):
            found.add(value)
        elif ADDRESSES.search(name):
            found |= _held_by(value)
    spelled = {spell(s) for s in found for spell in (str, unquote, unquote_plus, quote, quote_plus)}
    return sorted((s for s in spelled if len(s) >= SHORTEST), key=len, reverse=True)


def _held_by(address: str) -> set[str]:
    """What stands before the @ (a user's name as long as a token, too), and what has a secret's name."""
    found = {value.strip("{}'\"") for _, value in NAMED.findall(address) + NAMED.findall(unquote_plus(address))}
    if _without_user_of(address):
        user, _, password = address.partition("://")[2].rpartition("@")[0].partition(":")
        if password and password != user:  # mlflow:mlflow hides nothing, and would take half of every sentence
            found.add(password)
        if not password and len(user) >= TOKEN:
            found.add(user)
    return found


def _without_user_of(address: str) -> bool:
    return ADDRESS.sub(_without_user, address) != address


class Scrubbing:
    """A stream that writes scrubbed text: what loggers, bars and other libraries print passes here, too."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(scrubbed(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def scrubbing() -> Iterator[None]:
    """Nothing secret leaves by stdout or stderr, nor with a traceback that ends the process."""
    sys.excepthook = _tell_scrubbed
    out, err = (cast(TextIO, Scrubbing(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def _tell_scrubbed(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    sys.stderr.write(scrubbed("".join(traceback.format_exception(kind, error, trace))))
