"""The docs say what is there: links, commands, names and tables are held against the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.house.imports import ROOT

LOG = ROOT / "docs" / "log"


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


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page.parent / name) if name else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.append(target)
    assert not wrong


def test_a_page_of_the_log_is_one_question():
    """Numbered without a gap, in one form, each with its line in the index, under the same title."""
    pages = sorted(LOG.glob("[0-9]*.md"))
    assert [page.name[:2] for page in pages] == [f"{i:02d}" for i in range(1, len(pages) + 1)]
    lines = []
    for page in pages:
        title, _, body = page.read_text(encoding="utf-8").partition("\n")
        assert title.startswith(f"# {page.name[:2]}. "), page
        leads = re.findall(r"^\*\*(\w+)\.\*\*", body, flags=re.MULTILINE)
        assert leads == ["Question", "Tried", "Figures", "Decision"], page
        lines.append(f"- [{page.name[:2]}]({page.name}) {title[6:]}")
    assert [line for line in read("docs/log/README.md").splitlines() if line.startswith("- ")] == lines
