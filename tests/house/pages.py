"""The pages of the docs, and the commands that they name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.house.imports import ROOT


def tracked(*patterns: str) -> list[Path]:
    """Files that git has, or would have."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [Path(name) for name in listed if (ROOT / name).is_file()]


PAGES = tracked("*.md")


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


TOOLS = (
    "python",
    "dvc",
    "prefect",
    "pytest",
    "mlflow",
    "torchrun",
    "ruff",
    "mypy",
    "pre-commit",
)  # in .venv, not in PATH


def commands(page: Path) -> list[str]:
    """Every command of a page: the lines of its code blocks without remarks, and what it says in passing in `...`."""
    text = read(page)
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in fenced if kind in ("bash", "sh", "console") for line in block.splitlines()]
    lines += re.findall(r"^ {4}(?! |[-*|] )(.+)$", text, re.MULTILINE)
    passing = re.sub(r"^ {4}(?! |[-*|] ).+$", "", text, flags=re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", passing)]
    lines += [span for span in spans if " " in span]
    parts = [part for line in lines for part in re.split(r" && | \|\| | \| |; ", line.split(" #")[0])]
    return [part.strip() for part in parts if part.strip()]


def without_settings(command: str) -> list[str]:
    """The words of a command after VARIABLE=value, wherever they stand in front."""
    words = command.split()
    while words and re.match(r"[A-Z_0-9]+=", words[0]):
        words = words[1:]
    return words
