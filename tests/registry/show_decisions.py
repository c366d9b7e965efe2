"""Two versions, one better and one worse than the champion, and the two decisions with their reasons.

python -m tests.registry.show_decisions        # in a registry of its own, in a temporary folder; made-up runs
"""

from __future__ import annotations

import os
import tempfile
from contextlib import chdir
from pathlib import Path

from tests.registry.synthetic import make_run

RUNS = {"champion": {}, "better": {"robust": 0.72, "seed": 1}, "worse": {"robust": 0.5, "seed": 2}}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        from pipelines.promote import main as promote
        from stages.register import register

        for name, options in RUNS.items():
            with chdir(make_run(Path(folder) / name, **options)):
                register()
        with chdir(Path(folder) / "champion"):
            for version in ("1", "2", "3"):
                print(f"\n$ python -m pipelines.promote synthetic {version} --to champion")
                print(f"(exit code {promote(['synthetic', version, '--to', 'champion'])})")
            print("\n$ python -m pipelines.promote synthetic --history")
            promote(["synthetic", "--history"])


if __name__ == "__main__":
    main()
