"""`validate` ends with its verdict: what is used, what is left out and why, and where all of it stands."""

from __future__ import annotations

import pytest


@pytest.mark.slow
def test_the_default_set_has_near_copies(clone):
    assert clone.run("python", "-m", "stages.prepare").returncode == 0
    done = clone.run("python", "-m", "stages.validate")
    assert done.returncode == 0, done.stderr
    verdict, warning, where = done.stdout.splitlines()
    assert verdict.startswith("validate: fit, with warnings: ")
    assert " of 1,797 images in 10 classes are used (" in verdict
    assert " images of val and test look like one nearer to training: digits#" in warning
    assert (
        where == "  All of them: reports/data_docs/offending.csv; the whole report, with pictures: reports/data.html."
    )
