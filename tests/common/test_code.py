"""Progress belongs to the code that made it."""

from __future__ import annotations

from autolora.common import code


def test_other_code_of_ours_or_another_torch_is_told_apart(mended, monkeypatch):
    before = code.code_sha256()
    assert before == code.code_sha256()
    mended()
    ours = code.code_sha256()
    assert ours != before
    monkeypatch.setattr(code, "installed", lambda name: "0.0")
    assert code.code_sha256() not in (before, ours)
