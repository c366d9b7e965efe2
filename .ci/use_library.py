"""Run where the wheel of `autolora` is installed and nothing of the pipeline: fine-tune, merge, attack, export.

Then its command on three files that it has not written (colours.py, which lies beside this one).
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import colours
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

x, y = colours.images()
np.savez("colours.npz", x=x, y=y)
expected = colours.stands(x, y, 8 / 255)
for form, more in (("float", []), ("nhwc", ["--layout", "nhwc"]), ("softmax", ["--before-softmax"])):
    path, command = colours.write(Path(f"{form}.onnx"), form), Path(sys.executable).with_name("autolora")
    told = [command, "attack", path, "--data", "colours.npz", "--eps", "8/255", "--version", "fast", "--out", form]
    subprocess.run([*told, *more], check=True, stdout=subprocess.DEVNULL)
    assert json.loads(Path(form, "report.json").read_text())["robust_accuracy"] == expected.mean(), form
print(f"autolora attack: three foreign files, robust {expected.mean():.2f}, as it must be")
