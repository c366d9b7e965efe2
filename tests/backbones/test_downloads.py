"""Weights from a URL, the hub or a path, over real local servers: whole, resumed, of known content, or an error."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autolora.backbones.classifier import Spec, build
from autolora.common.downloads import fetch, fetch_url, is_hub
from tests.backbones.servers import HubHandler, serving

CONTENT = bytes(range(256)) * 4000  # about 1 MB
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def fetched(url, sha256=None, **how):
    return fetch_url(url, sha256, **{"pause": 0, **how})


# --- a URL ------------------------------------------------------------------------------------------------------------


def test_downloaded_once(tmp_path):
    with serving({"/robust.pth": CONTENT}) as (address, record):
        first = fetched(f"{address}/robust.pth", SHA)
        second = fetched(f"{address}/robust.pth", SHA)
    assert first == second
    assert first.read_bytes() == CONTENT
    assert len(record.ranges) == 1
    assert first.parent == tmp_path / "autolora" / "downloads"
    assert [p.suffix for p in first.parent.iterdir() if p.suffix in (".part", ".etag")] == []


def test_a_broken_transfer_goes_on_where_it_stopped():
    with serving({"/robust.pth": CONTENT}) as (address, record):
        record.break_after = [300_000, 200_000]
        assert fetched(f"{address}/robust.pth", SHA).read_bytes() == CONTENT
    assert record.ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_the_next_process_goes_on():
    with serving({"/robust.pth": CONTENT}) as (address, record):
        record.break_after = [300_000]
        with pytest.raises(ValueError, match=r"broke off after 300000 of 1024000 bytes.*goes on from there"):
            fetched(f"{address}/robust.pth", SHA, attempts=1)
        assert fetched(f"{address}/robust.pth", SHA).read_bytes() == CONTENT
    assert record.ranges == [None, "bytes=300000-"]


def test_two_files_are_never_glued_together():
    """The file on the server changed between the two halves: If-Range makes it begin again."""
    other = CONTENT[::-1]
    with serving({"/robust.pth": CONTENT}) as (address, record):
        record.break_after = [300_000]
        with pytest.raises(ValueError, match="broke off"):
            fetched(f"{address}/robust.pth", attempts=1)
        record.files["/robust.pth"] = other
        assert fetched(f"{address}/robust.pth").read_bytes() == other


def test_a_server_that_cannot_resume():
    with serving({"/robust.pth": CONTENT}) as (address, record):
        record.resumable, record.break_after = False, [300_000]
        assert fetched(f"{address}/robust.pth", SHA).read_bytes() == CONTENT
    assert record.ranges == [None, None]


def test_wrong_content_shows_both_hashes_and_leaves_nothing(tmp_path):
    with serving({"/robust.pth": CONTENT}) as (address, _), pytest.raises(ValueError, match=SHA) as caught:
        fetched(f"{address}/robust.pth", "0" * 64)
    assert "0" * 64 in str(caught.value)
    assert [p.suffix for p in (tmp_path / "autolora" / "downloads").iterdir()] == [".lock"]


def test_a_cached_file_that_was_damaged_is_fetched_again():
    with serving({"/robust.pth": CONTENT}) as (address, record):
        path = fetched(f"{address}/robust.pth", SHA)
        path.write_bytes(b"damaged")
        assert fetched(f"{address}/robust.pth", SHA).read_bytes() == CONTENT
    assert len(record.ranges) == 2


def test_urls_with_the_same_name_are_different_files():
    with serving({"/a/w.pth": b"one", "/b/w.pth": b"two"}) as (address, _):
        assert fetched(f"{address}/a/w.pth").read_bytes() == b"one"
        assert fetched(f"{address}/b/w.pth").read_bytes() == b"two"


def test_absent_and_unreachable():
    with serving({}) as (address, record), pytest.raises(ValueError, match=r"gone\.pth': the server answers 404"):
        fetched(f"{address}/gone.pth")
    assert record.ranges == []
    with pytest.raises(ValueError, match=r"could not be fetched .*refused"):
        fetched(f"{address}/gone.pth")


@pytest.mark.parametrize("says_how_much", [True, False])
def test_more_than_the_limit_is_refused_and_not_kept(tmp_path, says_how_much):
    with serving({"/robust.pth": CONTENT}) as (address, record):
        record.says_length = says_how_much
        with pytest.raises(ValueError, match="more than 1,000 bytes"):
            fetched(f"{address}/robust.pth", largest=1000)
    assert [p.suffix for p in (tmp_path / "autolora" / "downloads").iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize("elsewhere", ["ftp://127.0.0.1/w.pth", "file:///etc/hostname", "data:,hello"])
def test_a_server_that_sends_us_to_another_scheme_is_refused(elsewhere):
    with serving({}) as (address, record):
        record.redirects["/robust.pth"] = elsewhere
        with pytest.raises(ValueError, match=r"refused|is not allowed"):
            fetched(f"{address}/robust.pth")


def test_a_server_may_send_us_on_to_another_address():
    with serving({"/there.pth": CONTENT}) as (address, record):
        record.redirects["/here.pth"] = f"{address}/there.pth"
        assert fetched(f"{address}/here.pth", SHA).read_bytes() == CONTENT


def test_a_password_in_an_address_is_refused_and_not_shown():
    with pytest.raises(ValueError, match="leave it out") as caught:
        fetched("https://somebody:secret@127.0.0.1/robust.pth?token=hidden")
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_a_web_page_at_the_address():
    from autolora.backbones.loading import load_backbone

    page = b"<!DOCTYPE html><html>Sign in to continue</html>"
    with serving({"/robust.pth": page}) as (address, _), pytest.raises(ValueError, match="it is a web page"):
        load_backbone("resnet10t", f"{address}/robust.pth")


def test_processes_that_ask_at_once_download_once(tmp_path):
    """As the processes of one training on several GPUs do."""
    code = "import sys; from autolora.common.downloads import fetch; print(fetch(sys.argv[1]))"
    with serving({"/robust.pth": CONTENT}) as (address, record):
        command = [sys.executable, "-c", code, f"{address}/robust.pth"]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert len(record.ranges) == 1
    (path,) = paths
    assert Path(path).read_bytes() == CONTENT


# --- a path -----------------------------------------------------------------------------------------------------------


def test_a_path_with_its_hash(tmp_path):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    assert fetch(str(tmp_path / "w.pth"), SHA) == tmp_path / "w.pth"
    assert fetch(str(tmp_path / "w.pth"), SHA.upper()) == tmp_path / "w.pth"
    with pytest.raises(ValueError, match=f"its sha256 is {SHA}, expected {'1' * 64}"):
        fetch(str(tmp_path / "w.pth"), "1" * 64)


# --- the hub ----------------------------------------------------------------------------------------------------------

SMALL = {"channels": [8, 8, 8, 8]}
FETCH = "import sys; from autolora.common.downloads import fetch; print(fetch(sys.argv[1]))"


def from_hub(address, weights, home, offline="0"):
    """In a process of its own: the hub's client reads its address when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": offline}
    return subprocess.run(
        [sys.executable, "-c", FETCH, weights], env=environment, capture_output=True, text=True, timeout=200
    )


@pytest.fixture(scope="module")
def hub_files(tmp_path_factory):
    """A repository as timm pushes it, one with a foreign checkpoint, one where the choice is not clear."""
    folder, body = tmp_path_factory.mktemp("hub"), build(Spec("resnet18", 1000, 32, options=SMALL), 1).body
    torch.save({"state_dict": {f"module.{k}": v for k, v in body.state_dict().items()}}, folder / "robust.pt")
    import safetensors.torch

    config = b'{"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2]}}'
    plain = safetensors.torch.save(body.state_dict())
    files = {
        "timm/small.a1": {"model.safetensors": plain, "pytorch_model.bin": b"unused", "config.json": config},
        "madry/robust": {"weights/robust.pt": (folder / "robust.pt").read_bytes(), "README.md": b"# hello"},
        "two/files": {"a.pth": b"1", "b.pth": b"2"},
    }
    everything = {f"{repo}/{name}": data for repo, inside in files.items() for name, data in inside.items()}
    return everything, body.layer1[0].conv1.weight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "mean"),
    [
        ("timm/small.a1", 0.1),
        ("hf:madry/robust@main", 0.485),
        ("hf:madry/robust/weights/robust.pt", 0.485),
    ],
)
def test_from_the_hub(weights, mean, hub_files, tmp_path):
    from autolora.backbones.loading import load_backbone

    files, weight = hub_files
    with serving(files, HubHandler) as (address, record):
        first = from_hub(address, weights, tmp_path)
        assert first.returncode == 0, first.stderr[-2000:]
        sent = list(record.sent)
        assert from_hub(address, weights, tmp_path).stdout == first.stdout
    assert record.sent == sent, "the second time it comes from the cache"
    model = load_backbone("resnet18", first.stdout.strip(), 7, options=SMALL)
    assert torch.equal(model.body.layer1[0].conv1.weight, weight)
    assert model.spec.mean[0] == mean, "timm's config.json comes along"
    assert model.loading.head == "fc fresh, 7 classes (the file's has 1000 classes)"


@pytest.mark.slow
def test_what_the_hub_does_not_have(hub_files, tmp_path):
    with serving(hub_files[0], HubHandler) as (address, _):
        for weights, words in (
            ("nobody/nothing", "'nobody/nothing': the hub does not give it"),
            ("hf:madry/robust/gone.pt", "'hf:madry/robust/gone.pt': the hub does not give it"),
            ("two/files", "'two/files': it has a.pth, b.pth: name one, hf:two/files/FILE"),
        ):
            result = from_hub(address, weights, tmp_path)
            assert result.returncode == 1
            assert f"BadArgument: weights is {words}" in result.stderr


@pytest.mark.slow
def test_without_a_network_the_cache_serves(hub_files, tmp_path):
    with serving(hub_files[0], HubHandler) as (address, _):
        path = from_hub(address, "timm/small.a1", tmp_path).stdout
    assert from_hub("http://127.0.0.1:9", "timm/small.a1", tmp_path).stdout == path != ""
    result = from_hub("http://127.0.0.1:9", "nobody/nothing", tmp_path, offline="1")
    assert "weights is 'nobody/nothing': the hub cannot be reached, and its cache has no such file" in result.stderr


def test_what_is_a_hub_id_and_what_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub("timm/resnet18.a1_in1k")
    assert is_hub("hf:owner/name/robust.pt")
    for path in ("models/robust.pth", "./owner/name", "a/b/c", "robust.pt", "/abs/file"):
        assert not is_hub(path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").write_bytes(b"")
    assert not is_hub("owner/name")
