"""An ONNX file attacked as a file, against the torch module that it came from: the same flags, and at what price?

    python -m benchmarks.attack_onnx                            # robust and natural nets, a ViT; then files of 8 bits
    python -m benchmarks.attack_onnx --only resnet2b --images 100

Standard AutoAttack, one thread, the module first and then its file (`autolora/attacks/engine/file_network.py`).
Processor seconds, so that other work on the machine counts little. A flag that differs is told with the margin that the
network has at the adversarial image of the other side: rounding decides where it is small. The ViT has random weights
and the labels that it gives itself. Files of 8 bits: what stands the white-box attacks along the copy, against what
stands the module's adversarial images and Square.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from torch import Tensor, nn

from autolora import Threat
from autolora.attacks.autoattack import autoattack_of
from autolora.attacks.engine.file_network import FileNetwork
from autolora.attacks.engine.prepare import default_batch
from autolora.attacks.evaluation import Settings
from autolora.attacks.onnx_file import square
from autolora.attacks.report import Report
from autolora.common.command_line import Command
from autolora.common.files import read_json, write_json
from autolora.data.images import TestImages
from autolora.export.conversion import converted, traced
from autolora.export.quantise import int8
from autolora.export.runtime import logits, open_session
from benchmarks.agreement_with_original import SHARED
from benchmarks.zoo import cifar500, load_zoo

ROOT = Path(__file__).resolve().parents[1]
NETS = {
    "resnet2b": "2/255",
    "resnet4b": "2/255",
    "resnet10t": "8/255",
    "resnet20-natural": "1/255",
    "vit": "1/255",
}
EIGHT_BITS = {"resnet2b": "2/255", "resnet10t": "8/255"}
CPU = torch.device("cpu")


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **sizes).eval()
    nn.init.normal_(model.get_parameter("head.weight"), std=0.5)
    return model


def loaded(shared: Path, name: str, count: int) -> tuple[nn.Module, TestImages, onnx.ModelProto]:
    x, y = cifar500(shared)
    x, y = x[:count], y[:count]
    model = vit() if name == "vit" else load_zoo(shared, name)
    if name == "vit":
        with torch.no_grad():
            y = model(x.float() / 255).argmax(1)
    file = (converted if name == "vit" else traced)(model, (3, 32, 32))
    return model, TestImages.of(x, y), file


def timed(model: nn.Module, images: TestImages, threat: Threat, batch: int) -> tuple[Report, float]:
    begin = time.process_time()
    report = autoattack_of(model, images, threat, Settings(batch_size=batch, show=False))
    return report, time.process_time() - begin


def margin(model: nn.Module, x: Tensor, label: int) -> float:
    """How much the right class is ahead, in logits."""
    with torch.no_grad():
        z = model(x[None])[0]
    others = torch.cat([z[:label], z[label + 1 :]])
    return float(z[label] - others.max())


def both(shared: Path, name: str, count: int) -> dict[str, Any]:
    model, images, file = loaded(shared, name, count)
    threat, x = Threat("linf", NETS[name]), images.pixels()[:2]
    batch = default_batch(CPU, model, x)
    module, module_seconds = timed(model, images, threat, batch)
    begin = time.process_time()
    network = FileNetwork(file)
    hastened = network.hasten(file, x)
    opening = time.process_time() - begin
    found, seconds = timed(network, images, threat, batch)
    apart = (module.robust != found.robust).nonzero().flatten().tolist()
    beyond = [found if module.robust[i] else module for i in apart]
    return {
        "threat": str(threat),
        "images": count,
        "clean": module.clean_accuracy,
        "module": {"robust": module.robust_accuracy, "processor_seconds": round(module_seconds, 1)},
        "file": {"robust": found.robust_accuracy, "processor_seconds": round(seconds + opening, 1)},
        "times": round((seconds + opening) / module_seconds, 2),
        "gradients": "in onnxruntime" if hastened else "of the copy",
        "flags_apart": len(apart),
        "margins": [round(margin(model, by.adversarial[i], int(images.y[i])), 6) for i, by in zip(apart, beyond)],
    }


def eight_bits(shared: Path, name: str, count: int, folder: Path) -> dict[str, Any]:
    model, images, file = loaded(shared, name, count)
    threat = Threat("linf", EIGHT_BITS[name])
    path = folder / f"{name}.onnx"
    onnx.save(file, path)
    onnx.save(small := int8(path, cifar500(shared)[0][count : count + 100].float().numpy() / 255), path)
    report, _ = timed(model, images, threat, 64)
    session = open_session(path, threads=1, beside_torch=True)

    def answer(x: np.ndarray) -> np.ndarray:
        return logits(session, x)

    clean, right = (answer(x).argmax(1) == images.y for x in (images.floats, report.adversarial.numpy()))
    replayed = clean & right
    squared = replayed.copy()
    squared[replayed] = square(answer, images.only(replayed), threat, seed=0)
    white, seconds = timed(FileNetwork(small), images, threat, 64)
    return {
        "threat": str(threat),
        "images": count,
        "clean": float(clean.mean()),
        "stand_replay": float(replayed.mean()),
        "stand_replay_and_square": float(squared.mean()),
        "stand_white_box": white.robust_accuracy,
        "only_white_box_left": int((white.robust.numpy() & ~squared).sum()),
        "processor_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = Command(
        __doc__,
        reads="robust networks and images in ../shared",
        writes="--results (JSON) as they come, and lines on stdout",
    )
    parser.add_argument("--only", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--shared", type=Path, default=SHARED, help="where data/ and weights/ lie")
    parser.add_argument("--skip-int8", action="store_true")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/attack_onnx.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = read_json(chosen.results) if chosen.results.exists() else {}
    for name in chosen.only:
        results[name] = both(chosen.shared, name, chosen.images)
        print(name, results[name], flush=True)
        write_json(chosen.results, results)
    for name in [name for name in EIGHT_BITS if name in chosen.only and not chosen.skip_int8]:
        with tempfile.TemporaryDirectory() as folder:
            results[f"{name}, int8"] = eight_bits(chosen.shared, name, chosen.images, Path(folder))
        print(f"{name}, int8", results[f"{name}, int8"], flush=True)
        write_json(chosen.results, results)


if __name__ == "__main__":
    main()
