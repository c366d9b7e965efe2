"""After `dvc repro`: the registry holds the version that the receipt names, and its ONNX file answers like torch."""

import json
import os
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import mlflow
import numpy as np
import onnxruntime
import torch

from autolora.backbones.classifier import load_classifier
from autolora.common.files import file_sha256, read_json

receipt = read_json("models/registered.json")
mlflow.set_tracking_uri(receipt["tracking_uri"])
client = mlflow.MlflowClient()
version = client.get_model_version(receipt["name"], str(receipt["version"]))
folder = Path(mlflow.artifacts.download_artifacts(f"models:/{receipt['name']}/{receipt['version']}"))
(onnx_file,) = folder.rglob("*.onnx")
assert file_sha256(onnx_file) == file_sha256("models/export/model.onnx") == receipt["onnx_sha256"]

session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
images = np.load("data/prepared/test/images.npy")[:64].astype(np.float32) / 255
(logits,) = session.run(["logits"], {"image": images})
with torch.no_grad():
    expected = load_classifier("models/merged.safetensors")(torch.from_numpy(images)).numpy()
difference = float(np.abs(logits - expected).max())
assert difference < 1e-3, difference
robustness = read_json("reports/robustness.json")
print(
    json.dumps(
        {
            "registered": f"{version.name} version {version.version}",
            "onnx_sha256": receipt["onnx_sha256"],
            "largest logit difference": difference,
            "clean": robustness["clean_accuracy"],
            "robust": robustness["robust_accuracy"],
            "baseline robust": robustness["baseline"]["robust_accuracy"],
        }
    )
)
