"""Speed of the exported file: onnxruntime against torch, and the robust network against the backbone it came from.

    python -m benchmarks.inference                      # models/export/model.onnx, models/merged.safetensors
    python -m benchmarks.inference --threads 1 --seconds 3

All candidates run in one process, in turns, so that whatever else the machine does hits them alike; ratios are of the
same run. Percentiles are over single calls, warm-up outside the clock. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from autolora.backbones import Classifier, build, load_classifier
from autolora.export import export_onnx
from autolora.runtime import logits, open_session

BATCHES = (1, 8, 64)
Call = Callable[[np.ndarray], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/export/model.onnx"))
    parser.add_argument("--weights", type=Path, default=Path("models/merged.safetensors"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="per candidate and batch size")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    model = load_classifier(a.weights).to(a.device)
    calls = candidates(a.model, model, a.device, a.threads)
    rng = np.random.default_rng(0)
    shape = (model.spec.channels, model.spec.image_size, model.spec.image_size)
    found = {str(batch): race(calls, rng.random((batch, *shape), np.float32), a.seconds) for batch in BATCHES}
    print(json.dumps({"machine": machine(a.device, a.threads), "batches": found}, indent=2))


def candidates(path: Path, model: Classifier, device: str, threads: int) -> dict[str, Call]:
    """The file, torch eager and compiled, and the same backbone before any tuning, as a file of its own."""
    session = open_session(path, device, threads)
    compiled = torch.compile(model, dynamic=False)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(build(model.spec).eval(), Path(folder) / "backbone.onnx")
        backbone = open_session((Path(folder) / "backbone.onnx").read_bytes(), device, threads)
    return {
        "onnx": lambda x: logits(session, x),
        "onnx_backbone": lambda x: logits(backbone, x),
        "torch_eager": lambda x: in_torch(model, x, device),
        "torch_compiled": lambda x: in_torch(compiled, x, device),
    }


@torch.inference_mode()
def in_torch(model: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray, device: str) -> np.ndarray:
    return model(torch.from_numpy(x).to(device)).cpu().numpy()  # pixels in, logits out, as a server needs them


def race(calls: dict[str, Call], x: np.ndarray, seconds: float) -> dict[str, dict[str, float]]:
    """Rounds of every candidate until the time is up, in an order drawn anew: who follows torch finds cold caches."""
    order = random.Random(0)
    for call in calls.values():
        for _ in range(5):
            call(x)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < until:
        for name, call in order.sample(list(calls.items()), len(calls)):
            start = time.perf_counter()
            call(x)
            spent[name].append(time.perf_counter() - start)
    rows = {name: row(np.array(times), len(x)) for name, times in spent.items()}
    for name in rows:
        rows[name]["time_ratio_to_onnx"] = round(rows[name]["p50_ms"] / rows["onnx"]["p50_ms"], 3)
    return rows


def row(times: np.ndarray, batch: int) -> dict[str, float]:
    p50, p99 = np.percentile(1000 * times, [50, 99])
    return {
        "images_per_second": round(1000 * batch / p50, 1),
        "p50_ms": round(p50, 4),
        "p99_ms": round(p99, 4),
        "calls": len(times),
    }


def machine(device: str, threads: int) -> dict[str, object]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 1),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


if __name__ == "__main__":
    main()
