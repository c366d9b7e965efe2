"""Run where the wheel of `autolora` is installed and nothing of the pipeline: fine-tune, merge, attack, export."""

import importlib.util

import numpy as np
import torch

import autolora
from autolora.export.runtime import onnxruntime

for absent in ("dvc", "mlflow", "prefect", "great_expectations", "stages", "pipelines"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is installed: this environment is not bare"

generator = torch.Generator().manual_seed(0)
y = torch.arange(96) % 3
x = torch.rand(96, 3, 16, 16, generator=generator) * 0.4 + 0.3 * y.view(-1, 1, 1, 1) * torch.eye(3)[y][:, :, None, None]
images = (x.clamp(0, 1) * 255).to(torch.uint8)
threat = autolora.Threat("linf", "2/255")
model = autolora.load_backbone(
    "resnet10t", weights=None, classes=3, image_size=16, stem="nopool", options={"channels": [8, 8, 16, 16]}
)
tuned = autolora.finetune(model, (images[:80], y[:80]), (images[80:], y[80:]), threat, epochs=2, seed=0)
robust = autolora.merge(tuned, alpha=0.0)
report = autolora.autoattack(robust, images[80:].float() / 255, y[80:], threat, version="fast", seed=0)
autolora.export_onnx(robust, "model.onnx")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"image": (images[80:].float() / 255).numpy()})
with torch.no_grad():
    expected = robust(images[80:].float() / 255).numpy()
assert np.allclose(logits, expected, atol=1e-4)
clean, robust_share = np.mean(np.asarray(report.clean)), np.mean(np.asarray(report.robust))
print(f"the library alone: clean {clean:.2f}, robust {robust_share:.2f}, ONNX agrees")
