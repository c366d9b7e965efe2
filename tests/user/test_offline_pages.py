"""Without a network: the pages that the commands of the README write still show what they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import browser, executable
from tests.registry.synthetic import make_run

PIPELINE_PLOTS = 5  # with lines, in dvc.yaml


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """The page of `dvc plots show` in a run's folder."""
    folder = make_run(tmp_path_factory.mktemp("plots") / "run")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True)
    shutil.copy(root / "params.yaml", folder / "params.yaml")  # dvc.yaml asks it for data.path
    shutil.copy(root / ".dvc/config", folder / ".dvc/config")
    shutil.copytree(root / ".dvc/plots", folder / ".dvc/plots", dirs_exist_ok=True)
    subprocess.run([sys.executable, "-m", "dvc", "plots", "show"], cwd=folder, check=True, capture_output=True)
    return folder / "dvc_plots/index.html"


@pytest.mark.slow
def test_dvc_plots_name_no_other_host(plots):
    html = plots.read_text(encoding="utf-8")
    assert html.count("vegaEmbed('#") == PIPELINE_PLOTS
    hosts = set(re.findall(r"https?://([^/\"']+)", html))
    assert hosts == {"vega.github.io", "www.w3.org"}  # names of formats, which nobody fetches
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", html)


@pytest.mark.slow
@pytest.mark.skipif(executable() is None, reason="needs Chromium (apt-get install chromium)")
def test_dvc_plots_draw_their_curves(plots):
    with browser() as page:
        page.show(plots.as_uri(), 1000, 800)
        assert page.named("Runtime.exceptionThrown") == []
        asked = [e["request"]["url"] for e in page.named("Network.requestWillBeSent")]
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        curves = page.evaluate(
            "[...document.querySelectorAll('body > div')].map(d => [d.querySelector('h2')?.textContent,"
            " [...d.querySelectorAll('polyline')].map(p => p.getAttribute('points').split(' ').length)])"
        )
        inside = "[...document.querySelectorAll('polyline')].every(p => { const b = p.getBBox();"
        assert page.evaluate(
            inside + " return b.x >= 0 && b.y >= 0 && b.x + b.width <= 420 && b.y + b.height <= 260 })"
        )
    drawn = {title: points for title, points in curves if title}
    assert drawn == {
        "accuracy on the validation part": [60, 60],
        "the loss weights, automated": [60, 60],
        "the learning rate, automated": [60],
        "the dial": [11, 11],
        "robust accuracy over eps": [10, 10],
    }
