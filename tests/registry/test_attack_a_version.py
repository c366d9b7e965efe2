"""`autolora attack models:/NAME@alias`: what an alias of a real registry names is the file that is attacked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autolora.command import models
from autolora.command.models import Asked, target
from stages.tracking.client import connect
from tests.attacks import colours


@pytest.mark.slow
def test_what_an_alias_names(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    """MLflow's own command fetches it."""
    monkeypatch.setattr(models.sys, "executable", python)
    client = connect().MlflowClient()
    client.create_registered_model("net")
    for form in ("half", "float"):
        (tmp_path / form).mkdir()
        colours.write(tmp_path / form / "model.onnx", form)
        client.create_model_version("net", source=str(tmp_path / form))
    client.set_registered_model_alias("net", "champion", "2")
    made = target(Asked("models:/net@champion"))
    x, y = colours.images()
    assert (made.name, made.notes["input"]) == ("net-champion", "FLOAT")
    assert (made.network(torch.from_numpy(x).float() / 255).argmax(1).numpy() == y).all()
