"""Each direct dependency is explained, and what is installed is held by hashes, without the address of an index."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.house.imports import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]


def names(requirements: list) -> set[str]:
    return {re.split(r"[\s<>=!~;\[]", one)[0].lower() for one in requirements if isinstance(one, str)}


def test_every_direct_dependency_is_explained():
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!package)([\w-]+) \| (\S[^|]*) \| (\S[^|]*) \| (\S[^|]*) \|$", text, re.MULTILINE)
    explained = {row[0] for row in rows}
    direct = names(PROJECT["project"]["dependencies"]).union(*(names(group) for group in GROUPS.values()))
    assert explained == direct
    assert len(rows) == len(explained)


@pytest.mark.parametrize(
    ("file", "groups"),
    [
        ("requirements.txt", PROJECT["tool"]["uv"]["default-groups"]),
        ("deploy/requirements.txt", ["pipeline", "orchestration", "workers"]),
    ],
)
def test_what_is_installed_has_hashes_and_no_host(file, groups):
    """`bash .ci/check_requirements.sh` compares it with a resolve; here only what needs none."""
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not re.search(r"://|index-url|find-links|\.\w+/simple", text)
    hashed = r"^([a-z0-9][\w.-]*)==\S+.*\\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)"
    entries = re.findall(hashed, text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\S", text, re.MULTILINE)) > 150
    installed = {name for name, _ in entries}
    asked = names(PROJECT["project"]["dependencies"]).union(*(names(GROUPS[name]) for name in groups))
    assert asked <= installed
    for constraint in PROJECT["tool"]["uv"]["constraint-dependencies"]:
        assert re.search(rf"^{re.escape(constraint)} ", text, re.MULTILINE), constraint


def test_the_image_installs_the_hashed_list():
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert "COPY deploy/requirements.txt ./" in dockerfile
    assert "--require-hashes requirements.txt" in dockerfile
    assert "uv sync" not in dockerfile
