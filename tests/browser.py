"""A real Chromium, headless, by its DevTools protocol: what it requests, complains about, measures and paints.

python -m tests.browser reports/card.html docs/                       # the screenshots of the card in docs/
python -m tests.browser dvc_plots/index.html docs/plots.png           # of any other page
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1",
]  # fmt: skip


def executable() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab; every event that the browser reports is kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.number, self.session = socket, 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            reply = json.loads(self.socket.recv(timeout=120))
            if reply.get("id") == self.number:
                assert "error" not in reply, reply["error"]
                return reply["result"]
            self.events.append(reply)

    def show(self, url: str, width: int, height: int, scheme: str = "light", media: str = "") -> None:
        """Load a page at a size; returns when it has loaded."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not self.named("Page.loadEventFired"):
            self.events.append(json.loads(self.socket.recv(timeout=120)))

    def named(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def evaluate(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def picture(self, path: Path, whole: bool = True) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])


@contextmanager
def browser() -> Iterator[Page]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(executable()), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port, path = _address(Path(profile) / "DevToolsActivePort", process)
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, compression=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(30)


def _address(file: Path, process: subprocess.Popen) -> tuple[str, str]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if file.is_file() and len(lines := file.read_text().splitlines()) == 2:
            return lines[0], lines[1]
        time.sleep(0.1)
    raise RuntimeError("chromium does not start here")


PICTURES = {  # name: width, height, colours, the whole page?
    "card": (1180, 900, "light", True),
    "card-dark": (1180, 900, "dark", True),
    "card-phone": (390, 900, "light", True),
    "result": (1100, 1010, "light", False),  # the top, for the README
}


def screenshots(card: Path, folder: Path) -> None:
    with browser() as page:
        for name, (width, height, scheme, whole) in PICTURES.items():
            page.show(card.resolve().as_uri(), width, height, scheme)
            small_picture(page, folder / f"{name}.png", whole)


def small_picture(page: Page, path: Path, whole: bool = True) -> None:
    """A fifth of the bytes, and nobody sees it."""
    page.picture(path, whole)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def one(address: str, path: Path) -> None:
    with browser() as page:
        page.show(address if "://" in address else Path(address).resolve().as_uri(), 1180, 900)
        small_picture(page, path)


if __name__ == "__main__":
    if len(sys.argv) != 3 or "--help" in sys.argv:
        sys.exit(print(__doc__, "\nuv run python -m tests.browser PAGE FILE.png | CARD FOLDER"))
    if sys.argv[2].endswith(".png"):
        one(sys.argv[1], Path(sys.argv[2]))
    else:
        screenshots(Path(sys.argv[1]), Path(sys.argv[2]))
