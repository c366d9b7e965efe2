"""How MLflow opens a registered model.onnx: the same bytes, and a check before every answer.

This file travels with the model, as code beside model.onnx with a copy of autolora/export/runtime.py that is called
autolora_runtime: `mlflow models serve` and `mlflow.pyfunc.load_model` need neither autolora nor torch. Pixels out of
range, a wrong shape or another dtype get status 400 and the reason; plain `mlflow.onnx` answers 0..255 without a word,
and wrongly.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import autolora_runtime as runtime
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model


class Checked:
    """model.onnx behind the checks of its input contract."""

    def __init__(self, path: Path) -> None:
        self.session = runtime.open_session(path, runtime.best_device())
        image = self.session.get_inputs()[0]
        self.name, self.shape = image.name, runtime.image_shape(self.session)
        self.dtype = "uint8" if runtime.takes_bytes(self.session) else "float32"

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        images = self._images(data)
        try:
            if self.dtype == "uint8" and images.size:
                images = runtime.as_bytes(images)
            runtime.check_images(images, self.shape, self.dtype)
        except runtime.BadImages as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return {"logits": self.session.run(None, {self.name: np.ascontiguousarray(images)})[0]}

    def _images(self, data: Any) -> np.ndarray:
        images = data[self.name] if isinstance(data, dict) and set(data) == {self.name} else data
        if not isinstance(images, np.ndarray):
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise MlflowException.invalid_parameter_value(f"expected one array named {self.name}, found {found}")
        return images


def _load_pyfunc(path: str) -> Checked:
    """MLflow's entry; refuses a file that is not the one that was registered."""
    model = Path(path)
    registered = (Model.load(str(model.parent)).metadata or {}).get("onnx_sha256")
    found = hashlib.sha256(model.read_bytes()).hexdigest()
    if registered is not None and registered != found:
        raise MlflowException.invalid_parameter_value(
            f"{model.name} is damaged: its sha256 is {found[:12]}, and {registered[:12]} was registered"
        )
    return Checked(model)
