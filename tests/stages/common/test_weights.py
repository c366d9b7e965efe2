"""What weights the pipeline accepts: those that DVC sees change, or whose hash is on record."""

from __future__ import annotations

import hashlib

import pytest

from autolora.common.errors import BadArgument
from stages.common.weights import resolve_weights
from tests.backbones.servers import serving

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLORA_WORK", str(tmp_path / "work"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def test_weights_outside_the_folder_need_their_hash(tmp_path):
    folder = tmp_path / "models" / "pretrained"
    folder.mkdir(parents=True)
    for path in (folder / "inside.pth", tmp_path / "outside.pth"):
        path.write_bytes(CONTENT)
    assert resolve_weights(None) is None
    assert resolve_weights(str(folder / "inside.pth"), None, folder) == folder / "inside.pth"
    with pytest.raises(ValueError, match=f"put its content on record with backbone.sha256: {SHA}"):
        resolve_weights(str(tmp_path / "outside.pth"), None, folder)
    assert resolve_weights(str(tmp_path / "outside.pth"), SHA, folder) == tmp_path / "outside.pth"
    with pytest.raises(ValueError, match="is another file"):
        resolve_weights(str(folder / "inside.pth"), "0" * 64, folder)
    with pytest.raises(ValueError, match=r"backbone\.sha256"):
        resolve_weights(str(folder / ".." / "pretrained" / ".." / ".." / "outside.pth"), None, folder)
    link = folder / "link.pth"  # as in the workspace of a sweep's cell: DVC sees what it leads to
    link.symlink_to(tmp_path / "outside.pth")
    assert resolve_weights(str(link), None, folder) == link


def test_a_url_needs_its_hash_in_the_pipeline():
    with serving({"/robust.pth": CONTENT}) as (address, _), pytest.raises(ValueError, match=f"sha256: {SHA}"):
        resolve_weights(f"{address}/robust.pth")


def test_what_is_fetched_lies_in_the_work_folder(tmp_path):
    with serving({"/robust.pth": CONTENT}) as (address, _):
        path = resolve_weights(f"{address}/robust.pth", SHA)
    assert path.read_bytes() == CONTENT
    assert path.parent == tmp_path / "work" / "downloads"


def test_what_follows_a_question_mark_is_not_shown():
    with serving({"/robust.pth": CONTENT}) as (address, _), pytest.raises(BadArgument) as caught:
        resolve_weights(f"{address}/robust.pth?token=secret")
    assert "robust.pth" in str(caught.value)
    assert "secret" not in str(caught.value)
