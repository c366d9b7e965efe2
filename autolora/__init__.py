"""AutoLoRa: robust fine-tuning without a hyper-parameter search, and the evidence that it worked.

    threat = autolora.Threat("linf", "8/255")
    model  = autolora.load_backbone("resnet18", weights=PATH, classes=10, image_size=32, stem="lowres")
    tuned  = autolora.finetune(model, (x_train, y_train), (x_val, y_val), threat)
    robust = autolora.merge(tuned, alpha=0.0)
    report = autolora.autoattack(robust, x, y, threat)
    autolora.export_onnx(robust, "model.onnx")

Names are fetched at first use: a stage that exports does not import (and so does not depend on) the attacks.
"""

from importlib import import_module
from typing import TYPE_CHECKING

_HOMES = {
    "Threat": "threat",
    "load_backbone": "backbones.loading",
    "finetune": "training.loop",
    "merge": "training.branch",
    "autoattack": "attacks.autoattack",
    "export_onnx": "export.write",
}

__all__ = ["Threat", "__version__", "autoattack", "export_onnx", "finetune", "load_backbone", "merge"]

if TYPE_CHECKING:  # what mypy and editors see
    from autolora.attacks.autoattack import autoattack
    from autolora.backbones.loading import load_backbone
    from autolora.export.write import export_onnx
    from autolora.threat import Threat
    from autolora.training.branch import merge
    from autolora.training.loop import finetune

    __version__: str
else:  # to mypy, a module with __getattr__ has every name

    def __getattr__(name: str):
        if name == "__version__":
            return import_module("importlib.metadata").version("autolora")
        if name not in _HOMES:
            raise AttributeError(f"module 'autolora' has no attribute {name!r}")
        return getattr(import_module(f"autolora.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
