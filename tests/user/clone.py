"""What a person has after `git clone`: the files of the working tree, a home with nothing in it, and no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody answers
# Of ours or of the tools: a person's shell has none of it.
SET_BY_US = ("AUTOLORA_", "MLFLOW_", "PREFECT_", "DVC_", "HF_", "PYTEST_", "GIT_", "RANK", "WORLD_SIZE", "PYTHON")


class Clone:
    """A clean clone, and commands that are run in it; `python` and `dvc` are those beside the given one."""

    def __init__(self, folder: Path, root: Path, python: str = sys.executable) -> None:
        self.folder, self.home, self.python = folder / "autolora", folder / "home", python
        self.home.mkdir(parents=True)
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
        for name in names:
            if (root / name).is_file() and name != "dvc.lock":
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(root / name, self.folder / name)
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "as it was cloned")

    def git(self, *arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=True
        ).stdout

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(SET_BY_US)}
        programs = [str(Path(self.python).parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        here = {"HOME": str(self.home), "PATH": os.pathsep.join(programs)}
        away = {name: NOWHERE for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
        quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "no_proxy": "localhost,127.0.0.1"}
        return kept | here | away | quiet | extra

    def run(self, *command: str, timeout: float = 600, **extra: str) -> subprocess.CompletedProcess[str]:
        """Found in the clone's PATH; stdout and stderr are no terminal."""
        environment = self.environment(**extra)
        return subprocess.run(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            encoding="utf-8", timeout=timeout,
        )  # fmt: skip

    def first_line(self, *command: str) -> str:
        """What a command writes first to stderr; then it is stopped."""
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            said = process.stderr.readline()
            process.kill()
        return said

    def changed(self) -> str:
        """What lies in the folder that was not cloned, or is not as it was."""
        return self.git("status", "--porcelain", "--ignored")

    def set_params(self, old: str, new: str) -> None:
        path = self.folder / "params.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text, f"params.yaml does not say {old!r}"
        path.write_text(text.replace(old, new), encoding="utf-8")
