"""One file is measured on its own, whatever lay under its name before."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from autolora.attacks.onnx_file import square
from autolora.data.examples import Examples
from autolora.data.images import TestImages
from autolora.export.runtime import logits, open_session
from autolora.export.write import export_onnx
from autolora.threat import Threat
from stages.evaluation.onnx_robustness import measure
from tests.export.nets import tiny


def images(n: int = 40) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, 3, 8, 8)).astype(np.float32) / 255


def labels(path: Path) -> np.ndarray:
    return logits(open_session(path), images()).argmax(1)


def test_square_on_another_file_does_not_go_on_from_this_one(tmp_path: Path, monkeypatch) -> None:
    """The same name in the same folder: what was found out about the file that lay there before is not taken over."""
    monkeypatch.setattr("stages.evaluation.onnx_robustness.square", partial(square, queries=100))
    path, exported, other = (tmp_path / f"{name}.onnx" for name in ("model", "exported", "other"))
    export_onnx(tiny(), exported)
    export_onnx(tiny(5), other)
    x = images()
    examples = Examples(TestImages.of(x, labels(exported)), x, np.zeros(40, bool))
    run = partial(measure, threat=Threat("linf", "2/255"), seed=0, limit=40)
    path.write_bytes(exported.read_bytes())
    run(path, examples, work=tmp_path / "work")
    path.write_bytes(other.read_bytes())
    examples = examples._replace(images=TestImages.of(x, labels(other)))
    after, fresh = (run(path, examples, work=tmp_path / name).record for name in ("work", "fresh"))
    assert after == fresh
