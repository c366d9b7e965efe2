"""Progress belongs to the code that made it."""

from __future__ import annotations

from importlib.metadata import version

from autolora.common import code


def test_other_code_of_ours_or_another_torch_is_told_apart(mended, monkeypatch):
    before = code.code_sha256()
    assert before == code.code_sha256()
    mended()
    ours = code.code_sha256()
    assert ours != before
    for library in ("torch", "torchvision", "timm"):
        with monkeypatch.context() as patched:
            patched.setattr(code, "installed", lambda name, other=library: "0.0" if name == other else version(name))
            assert code.code_sha256() not in (before, ours)
