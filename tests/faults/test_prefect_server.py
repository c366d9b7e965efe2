"""Neither a page in a browser on the server's host nor its network may start a run, which is code on workers."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORD = "autolora:a-word"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """Started in the repository, so with what pyproject.toml says, and with a password as compose.yaml gives one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_SERVER_API_AUTH_STRING": WORD,
        "PREFECT_API_AUTH_STRING": WORD,
        "PREFECT_UI_API_URL": f"http://workers.example.org:{port}/api",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail("the server ended")
            try:
                urllib.request.urlopen(f"{address}/api/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def status(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    data = b'{"name": "planted"}' if method == "POST" else None
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(address + path, data=data, method=method, headers=named)
    asked.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def basic(word: str) -> str:
    return "Basic " + base64.b64encode(word.encode()).decode()


def test_without_the_password_nothing_is_told_and_nothing_starts(server):
    assert status(server, "/api/flows/", "POST")[0] in (401, 403)
    for path in ("/api/admin/settings", "/api/csrf-token?client=2f0c6bd3-9b5f-4a8b-8d2e-9a0f5b6f1c11"):
        assert status(server, path)[0] == 401
        assert status(server, path, Authorization=basic("autolora:wrong"))[0] == 401
        assert status(server, path, Authorization=basic(WORD))[0] == 200
    assert status(server, "/api/health")[0] == 200


def test_a_page_that_borrows_the_browser_s_password_is_refused(server):
    """A browser sends a remembered password along; the token of the request it cannot have."""
    assert status(server, "/api/flows/", "POST", Authorization=basic(WORD))[0] == 403


@pytest.mark.parametrize(("origin", "told"), [("http://localhost:4200", True), ("https://evil.example.org", False)])
def test_only_the_server_s_own_page_may_ask(server, origin, told):
    asked = {"Origin": origin, "Access_Control_Request_Method": "POST"}
    allowed = status(server, "/api/flows/", "OPTIONS", **asked)[1].get("access-control-allow-origin")
    assert (allowed == origin) == told
    assert allowed in (origin, None)


def test_a_client_with_the_password_works(server):
    env = os.environ | {"PREFECT_API_URL": f"{server}/api", "PREFECT_API_AUTH_STRING": WORD}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "work-pool", "create", "gpu", "--type", "process"]
    done = subprocess.run([*command, "--overwrite"], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_asks_the_address_that_browsers_know(server):
    with urllib.request.urlopen(f"{server}/ui-settings", timeout=60) as answer:
        said = yaml.safe_load(answer.read())
    assert said["api_url"].startswith("http://workers.example.org:")
    assert said["auth"] == "BASIC"


def test_the_team_s_server_has_all_three():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    of_the_server = services["prefect"]["environment"]
    assert of_the_server["PREFECT_SERVER_API_AUTH_STRING"].endswith("${PREFECT_PASSWORD}")
    assert of_the_server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert "*" not in of_the_server["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    for name in ("setup", "worker", "worker-gpu"):
        assert services[name]["environment"]["PREFECT_API_AUTH_STRING"].startswith("autolora:${PREFECT_PASSWORD")


def test_no_service_has_a_password_in_its_command_line_or_more_of_the_store_than_it_needs():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert "PASSWORD" not in yaml.safe_dump(service.get("command", [])), name
        keys = service.get("environment", {})
        assert name == "minio" or keys.get("AWS_ACCESS_KEY_ID") != "autolora"
