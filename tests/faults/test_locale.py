"""A params.yaml in UTF-8 means the same in every locale."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.house.imports import ROOT

CODE = """
from stages.common.runner import main
def prepare():
    from stages.common.params import check
    import sys
    params = check(sys.argv[1])
    assert params.data.path == "données/猫", params.data.path
main(prepare)
"""


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "POSIX", "LANG": ""}]
)
def test_a_path_that_is_not_ascii(tmp_path, locale):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("data/raw", "données/猫", 1)
    (tmp_path / "params.yaml").write_text("# größer\n" + text, encoding="utf-8")
    (tmp_path / "code.py").write_text(CODE, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONCOERCECLOCALE": "0"} | locale
    command = [sys.executable, str(tmp_path / "code.py"), str(tmp_path / "params.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
