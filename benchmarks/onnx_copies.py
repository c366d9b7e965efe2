"""Whole networks as torch copies of their ONNX files: logits and input gradients against the torch they came from.

    python -m benchmarks.onnx_copies                            # random weights, all names
    python -m benchmarks.onnx_copies --only resnet50 vit_tiny_patch16_224 --exporter newer

Each is exported, rebuilt node by node (`autolora/export/torch_copy.py`) and asked about two images. Differences are
relative: of the largest logit, and of the length of the gradient. What is known already is not asked again.
"""

from __future__ import annotations

import io
import time
import warnings
from pathlib import Path
from typing import Any

import onnx
import timm
import torch
import torchvision
from torch import Tensor, nn

from autolora.common.command_line import Command
from autolora.common.errors import first_line
from autolora.common.files import read_json, write_json
from autolora.export.conversion import converted
from autolora.export.torch_copy import TorchCopy

ROOT = Path(__file__).resolve().parents[1]
FINE = 1e-3  # of the largest logit, and ten times that of a gradient
# Widely used, at least one of each family; with the side of an image.
TIMM: dict[str, int] = {
    "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "seresnet50": 64, "resnest14d": 64,
    "wide_resnet50_2": 64, "mobilenetv2_100": 64, "mobilenetv3_small_100": 64, "mobilenetv3_large_100": 64,
    "efficientnet_b0": 64, "efficientnetv2_rw_t": 64, "mixnet_s": 64, "ghostnet_100": 64, "regnety_008": 64,
    "densenet121": 64, "vgg11_bn": 224, "hrnet_w18_small": 64, "dpn68": 64, "repvgg_a0": 64, "inception_v3":
    128, "convnext_atto": 64, "convnextv2_atto": 64, "poolformer_s12": 64, "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "levit_128s": 224, "mobilevit_xxs":
    128, "pvt_v2_b0": 64, "xcit_nano_12_p16_224": 224, "eva02_tiny_patch14_224": 224, "cait_xxs24_224": 224,
    "mixer_s32_224": 224, "edgenext_xx_small": 64,
}  # fmt: skip
TORCHVISION: dict[str, int] = {
    "alexnet": 224, "squeezenet1_1": 64, "shufflenet_v2_x0_5": 64, "mnasnet0_5": 64, "googlenet": 64, "vit_b_32": 224,
    "convnext_tiny": 64, "swin_t": 224,
}  # fmt: skip


def network(name: str) -> tuple[nn.Module, int]:
    """With random weights; heads that begin at zero are drawn too."""
    torch.manual_seed(0)
    plain = name.removeprefix("torchvision:")
    if plain in TORCHVISION:
        more: dict[str, Any] = {"aux_logits": False} if plain == "googlenet" else {}
        model: nn.Module = torchvision.models.get_model(plain, weights=None, num_classes=10, **more).eval()
    else:
        model = timm.create_model(name, num_classes=10).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model, (TORCHVISION | TIMM)[plain]


def exported(model: nn.Module, example: Tensor, exporter: str) -> onnx.ModelProto:
    if exporter == "newer":
        return converted(model, (3, *example.shape[2:]))
    written = io.BytesIO()
    axes = {"image": {0: "n"}, "logits": {0: "n"}}
    torch.onnx.export(
        model,
        (example,),
        written,  # type: ignore[arg-type]  # the older exporter takes an open file
        dynamo=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes=axes,
    )
    return onnx.load_from_string(written.getvalue())


def compared(name: str, exporter: str) -> dict[str, Any]:
    model, size = network(name)
    x = torch.rand(2, 3, size, size, requires_grad=True)
    begin = time.perf_counter()
    try:
        file = exported(model, x.detach(), exporter)
    except Exception as error:  # the exporter's, of many kinds
        return {"exporter": exporter, "not exported": first_line(error)[:200]}
    took = time.perf_counter() - begin
    try:
        copy = TorchCopy(file)
        logit, slope = apart(model, copy, x)
    except ValueError as error:
        return {"exporter": exporter, "refused": str(error)[:200]}
    again = {}
    if slope > 10 * FINE:  # rounding opens a ReLU here and not there; in float64 it does not
        slope = apart(model.double(), copy.double(), x.detach().double().requires_grad_(True))[1]
        again = {"gradients_in": "float64"}
    return again | {
        "exporter": exporter,
        "size": size,
        "nodes": len(file.graph.node),
        "logits": float(f"{logit:.1e}"),
        "gradients": float(f"{slope:.1e}"),
        "fine": logit <= FINE and slope <= 10 * FINE,
        "export_seconds": round(took, 1),
    }


def apart(model: nn.Module, copy: nn.Module, x: Tensor) -> tuple[float, float]:
    """Logits, and gradients of all of them, each with a weight of its own."""
    expected, found = model(x), copy(x)
    weights = torch.linspace(-1, 1, 10, dtype=x.dtype)
    slopes = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (expected, found)]
    logit = (found - expected).abs().max() / expected.abs().max()
    return logit.item(), ((slopes[1] - slopes[0]).norm() / slopes[0].norm()).item()


def main() -> None:
    parser = Command(
        __doc__, reads="nothing: weights are drawn", writes="--results (JSON) as they come, and lines on stdout"
    )
    parser.add_argument("--only", nargs="+", default=[*TIMM, *(f"torchvision:{name}" for name in TORCHVISION)])
    parser.add_argument("--exporter", choices=("older", "newer"), default="older")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/onnx_copies.json")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    results = read_json(chosen.results) if chosen.results.exists() else {}
    for name in chosen.only:
        key = f"{name}, {chosen.exporter}"
        if key not in results:
            results[key] = compared(name, chosen.exporter)
            write_json(chosen.results, results)
        print(key, results[key], flush=True)
    known = [one for key, one in results.items() if key.endswith(chosen.exporter)]
    print(f"{sum(one.get('fine', False) for one in known)} of {len(known)} are what torch makes of them")


if __name__ == "__main__":
    main()
