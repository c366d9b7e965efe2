"""The library in a notebook: what it shows, what an editor sees, and a line with the cure for what newcomers mix up."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolora
from tests.method.small import QUICK, THREAT, images, network

TRAIN, VAL = images(48), images(12, 1)


@pytest.fixture(scope="module")
def tuned():
    return autolora.finetune(network(), TRAIN, VAL, THREAT, **QUICK | {"epochs": 1})


def refused(call) -> str:
    """What a mistake is told: one line."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_what_fine_tuning_gives_is_shown_in_ten_lines(tuned):
    lines = repr(tuned).splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 120
    assert "autolora" in lines[1]
    assert str(THREAT) in lines[1]
    assert f"clean {100 * tuned.best['val_clean']:.1f} %" in repr(tuned)
    assert str(tuned) == repr(tuned)


def test_and_in_a_notebook_as_a_table(tuned):
    page = tuned._repr_html_()  # IPython's name for it
    assert page.count("<tr>") == len(tuned.rows())
    assert str(THREAT) in page


def test_it_knows_its_version():
    assert autolora.__version__ == version("autolora")


SNIPPET = """
import autolora
model = autolora.load_backbone("resnet18", classes=10)
reveal_type(model)
reveal_type(autolora.finetune)
autolora.lode_backbone("resnet18")
autolora.load_backbone("resnet18", clases=10)
autolora.Threat("linf", [8])
"""


@pytest.mark.slow
def test_mypy_sees_the_public_names_and_a_misspelling(root, tmp_path):
    (tmp_path / "mine.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--ignore-missing-imports", "--no-incremental"]
    command += ["--follow-imports", "skip", "mine.py", *map(str, root.glob("autolora/**/*.py"))]  # and not all of torch
    said = subprocess.run(command, cwd=tmp_path, env={"MYPYPATH": str(root)}, capture_output=True, text=True).stdout
    assert 'Revealed type is "autolora.backbones.classifier.Classifier"' in said
    assert "autolora.training.loop.Tuned" in said
    assert 'Module has no attribute "lode_backbone"' in said
    assert 'Unexpected keyword argument "clases"' in said
    assert 'incompatible type "list[int]"' in said


# --- what is mixed up -------------------------------------------------------------------------------------------------


def train(x=TRAIN[0], y=TRAIN[1], model=None, threat=THREAT, **settings):
    return autolora.finetune(model or network(), (x, y), VAL, threat, **QUICK | {"epochs": 1, **settings})


X, Y = torch.from_numpy(TRAIN[0]), torch.from_numpy(TRAIN[1])


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: train(y=torch.eye(3)[Y]), "of one-hot rows: y.argmax(1)"),
        (lambda: train(y=Y[:, None]), "of a column: y[:, 0]"),
        (lambda: train(y=Y.float()), "as whole numbers: y.long()"),
        (lambda: train(y=np.where(TRAIN[1] == 2, 7, TRAIN[1])), "labels go from 0 to 7, but the network knows"),
        (lambda: train(y=TRAIN[1] - 1), "labels go from -1 to 1, but the network knows"),
        (lambda: train(x=X.float()), "divide them by 255"),
        (lambda: train(x=X.permute(0, 2, 3, 1)), "channels come first: x.permute(0, 3, 1, 2)"),
        (lambda: train(x=X[:, :1]), "three equal channels: x.repeat(1, 3, 1, 1)"),
        (lambda: train(x=X[:, :, :6]), "crop them to squares"),
        (lambda: train(x=X[0], y=Y[0]), "x[None]"),
        (lambda: train(lr=0.1), "no setting 'lr': did you mean rate?"),
        (lambda: train(weight_decay=0.1), "did you mean decay?"),
        (lambda: train(epoch=3), "did you mean epochs?"),
        (lambda: train(flavour=3), "there are method, reference, epochs"),
        (lambda: train(model=torch.relu), "model is a builtin_function_or_method: expected a torch.nn.Module"),
        (lambda: train(threat="linf:8/255"), "expected autolora.Threat('linf', '8/255')"),
        (lambda: train(threat=8 / 255), "expected autolora.Threat('linf', '8/255')"),
        (
            lambda: autolora.finetune(network(), DataLoader(TensorDataset(X, Y)), VAL, THREAT),
            "the training part is a DataLoader: expected a pair (images, labels)",
        ),
        (lambda: autolora.merge(network()), "tuned is a Small: expected what autolora.finetune returns"),
        (lambda: autolora.export_onnx(torch.relu, "m.onnx"), "model is a builtin_function_or_method: expected a torch"),
        (
            lambda: autolora.export_onnx(network().eval(), "m.onnx"),
            "does not say how large its images are: pass image_s",
        ),
        (lambda: autolora.export_onnx(network(), "m.onnx", image_size=8), "call model.eval() first"),
        (lambda: autolora.load_backbone("resnet19"), "did you mean resnet18"),
        (lambda: autolora.load_backbone("resnet18", "nowhere.pth"), "weights is 'nowhere.pth': there is no such file"),
    ],
)
def test_a_mistake_and_its_cure(mistake, words):
    assert words in refused(mistake)


def test_what_fine_tuning_gives_is_merged_before_it_is_exported(tuned):
    assert "merge it first: autolora.merge(tuned)" in refused(lambda: autolora.export_onnx(tuned, "m.onnx"))
    assert "expected a number from 0 to 1" in refused(lambda: autolora.merge(tuned, 2))
    assert isinstance(autolora.merge(tuned, np.float32(0.5)), nn.Module)
