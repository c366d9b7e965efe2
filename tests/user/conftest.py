"""A clean clone for each test that changes it, and one for all tests of a file that only look."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.user.clone import Clone


@pytest.fixture
def clone(tmp_path: Path, root: Path, python: str) -> Clone:
    return Clone(tmp_path, root, python)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, root: Path, python: str) -> Clone:
    return Clone(tmp_path_factory.mktemp("untouched"), root, python)
