"""A Triton model repository, or a KServe InferenceService, around the exact bytes of a model.onnx.

    python -m deploy.model_repository models/export/model.onnx repository            # CPU
    python -m deploy.model_repository models/export/model.onnx repository --gpu      # KIND_GPU
    python -m deploy.model_repository --kserve s3://models/robust-digits > service.yaml

config.pbtxt is written in full, from the file itself: nothing is left for Triton to guess. Triton checks shape and type
of what it is sent, never its range: export with `export.input: uint8`, where 0..255 is meant and nothing else fits.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autolora.common.command_line import Command
from autolora.common.files import write_bytes, write_text
from autolora.export.runtime import BadModel
from pipelines.registry.triton_config import config, labels


def write_repository(model: Path, folder: Path, name: str, *, gpu: bool) -> Path:
    """<folder>/<name>/{config.pbtxt,labels.txt,1/model.onnx}; the configuration is written last."""
    names, text = (
        "".join(f"{label}\n" for label in labels(model)),
        config(model, name, gpu=gpu),
    )  # refuses a damaged file
    target = folder / name
    write_bytes(target / "1" / "model.onnx", model.read_bytes())
    write_text(target / "labels.txt", names)
    write_text(target / "config.pbtxt", text)
    return target


def inference_service(storage: str, name: str, *, gpu: bool) -> str:
    """Triton inside KServe; `storage` is where the repository above was copied to."""
    resources = '{cpu: "1", memory: 2Gi, nvidia.com/gpu: "1"}' if gpu else '{cpu: "1", memory: 2Gi}'
    return f"""apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    model:
      modelFormat: {{name: triton}}
      protocolVersion: v2  # without it KServe finds no runtime
      storageUri: {storage}
      env:
        - {{name: NVIDIA_TF32_OVERRIDE, value: "0"}}  # float32 as it was attacked
        - {{name: ORT_DISABLE_TELEMETRY, value: "1"}}  # onnxruntime would report to its maker
      resources:
        requests: {resources}
        limits: {resources}
"""


def main() -> None:
    parser = Command(
        __doc__,
        reads="the ONNX file",
        writes="the model repository: REPOSITORY/NAME/config.pbtxt and 1/model.onnx; with --kserve prints YAML",
    )
    parser.add_argument("model", type=Path, nargs="?", help="model.onnx")
    parser.add_argument("repository", type=Path, nargs="?", help="folder of the model repository")
    parser.add_argument("--name", default="robust", help="of the model in the server")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--kserve", metavar="STORAGE_URI", help="print an InferenceService for a stored repository")
    arguments = parser.parse_args()
    if arguments.kserve:
        print(inference_service(arguments.kserve, arguments.name, gpu=arguments.gpu), end="")
    elif arguments.model and arguments.repository:
        try:
            print(write_repository(arguments.model, arguments.repository, arguments.name, gpu=arguments.gpu))
        except (BadModel, OSError) as error:
            sys.exit(f"model_repository: {error}")
    else:
        parser.error("give model.onnx and a folder, or --kserve STORAGE_URI")


if __name__ == "__main__":
    main()
