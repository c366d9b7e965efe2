"""An array's header may say anything: what it says is compared with what is there, before memory is asked for."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stages.common.errors import StageError
from stages.dataset.arrays import npz


def header(shape: tuple[int, ...], kind: str) -> bytes:
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": kind, "fortran_order": False, "shape": shape})
    return written.getvalue()


@pytest.mark.parametrize("n", [10**13, 10**9])
def test_an_array_that_says_it_is_huge(tmp_path: Path, n: int):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", header((n, 3, 32, 32), "|u1"))
        archive.writestr("y.npy", header((n,), "<i8"))
    with pytest.raises(
        StageError, match=rf"x.npz is broken: y says that it has the shape \({n},\), and holds 128 bytes"
    ):
        next(iter(npz(tmp_path)))
