"""Log model.onnx with MLflow so that what serves it checks its input: flavours `onnx` and a checked `python_function`.

    with mlflow.start_run(run_id=...):
        info = log_checked("models/export/model.onnx", ["cat", "dog"], name="classifier", tags={...})

The bytes of model.onnx stay what they are; `stages/tracking/checked_onnx.py` stands before them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autolora.common.files import file_sha256
from autolora.export import runtime

if TYPE_CHECKING:  # never imported here, but copied: what is registered depends on it
    import stages.tracking.checked_onnx  # noqa: F401

LOADER = Path(__file__).with_name("checked_onnx.py")


def log_checked(
    path: str | Path,
    classes: Sequence[str],
    metadata: dict[str, Any] | None = None,
    example: np.ndarray | None = None,  # float32 [n,3,h,w] in [0,1]
    **more: Any,
) -> Any:
    """The ModelInfo of what was logged; `more` goes to MLflow (name, tags, model_type, registered_model_name, ...)."""
    from mlflow.models import Model

    if example is not None:
        more["input_example"] = {"image": runtime.as_input(runtime.open_session(path), example).astype(np.float32)}
    return Model.log(
        artifact_path=None,
        flavor=sys.modules[__name__],
        onnx_path=str(path),
        signature=signature(path, len(classes)),
        metadata={"onnx_sha256": file_sha256(path), "classes": list(classes), **(metadata or {})},
        **more,
    )


def signature(path: str | Path, classes: int) -> Any:
    """float32 (-1,3,h,w), or (-1,h,w,3) where the file takes bytes.

    Always float32: MLflow casts JSON to the type it finds here, and a cast to uint8 would wrap 300 round to 44 and cut
    0.7 to 0 without a word. The loader turns whole numbers from 0 to 255 into bytes, and refuses others.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    session = runtime.open_session(path)
    image = TensorSpec(np.dtype("float32"), (-1, *runtime.image_shape(session)), session.get_inputs()[0].name)
    return ModelSignature(Schema([image]), Schema([TensorSpec(np.dtype("float32"), (-1, classes), "logits")]))


def save_model(path: str, onnx_path: str, mlflow_model: Any = None, **more: Any) -> None:
    """What MLflow calls a flavour: write the model's folder."""
    import mlflow.onnx
    import onnx
    from mlflow.models import Model

    model = mlflow_model or Model()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "autolora_runtime.py"
        shutil.copyfile(runtime.__file__, copy)
        mlflow.onnx.save_model(
            onnx.load(onnx_path),
            path,
            mlflow_model=model,
            code_paths=[str(LOADER), str(copy)],
            save_as_external_data=False,
            pip_requirements=requirements(),
            onnx_execution_providers=["CPUExecutionProvider"],
            **more,
        )
    shutil.copyfile(onnx_path, Path(path) / "model.onnx")  # byte for byte, whatever onnx.save makes of it
    model.flavors["python_function"]["loader_module"] = LOADER.stem
    model.save(str(Path(path) / "MLmodel"))


def requirements() -> list[str]:
    """What the served model needs beside MLflow; on a GPU machine, onnxruntime-gpu in place of onnxruntime."""
    return [f"{name}=={installed(name)}" for name in ("onnxruntime", "numpy")]
