"""Speed of the exported file: onnxruntime against torch, and the robust network against the backbone it came from.

    python -m benchmarks.onnx_speed                      # models/export/model.onnx, models/merged.safetensors
    python -m benchmarks.onnx_speed --threads 1 --seconds 2

All contestants run in one process, in turns, in an order drawn anew each round, so that whatever else the machine does
hits them alike. `again` is the same file in a second session: how far it is from 1.00 is the noise of a ratio. Ratios
are of medians; their spread is the range over ten parts of the run. Warm-up and compiling lie outside the clock.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autolora.backbones.classifier import Classifier, build, load_classifier
from autolora.common.command_line import Command
from autolora.export.runtime import logits, onnxruntime, open_session
from autolora.export.write import export_onnx

BATCHES = (1, 8, 64)
PARTS = 10  # of a run, each with ratios of its own
Call = Callable[[np.ndarray], object]


def main() -> None:
    parser = Command(
        __doc__,
        reads="models/export/model.onnx, models/merged.safetensors",
        writes="a table on stdout",
    )
    parser.add_argument("--model", type=Path, default=Path("models/export/model.onnx"))
    parser.add_argument("--weights", type=Path, default=Path("models/merged.safetensors"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=4.0, help="per contestant and batch size")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    start, about = time.perf_counter(), machine(a.device, a.threads)
    model = load_classifier(a.weights).to(a.device)
    calls = contestants(a.model, model, a.device, a.threads)
    shape = (model.spec.channels, model.spec.image_size, model.spec.image_size)
    found = {}
    for batch in BATCHES:
        x = np.random.default_rng(0).random((batch, *shape), np.float32)
        compiling = warmed_up(calls, x)
        found[str(batch)] = race(calls, x, a.seconds)
        print(table(batch, found[str(batch)], compiling), file=sys.stderr, flush=True)
    about["seconds_in_all"] = round(time.perf_counter() - start, 1)
    print(json.dumps({"machine": about, "batches": found}, indent=2))


def contestants(path: Path, model: Classifier, device: str, threads: int) -> dict[str, Call]:
    """The file, twice; the same backbone before any tuning, as a file of its own; torch eager and compiled."""
    session, again = (open_session(path, device, threads) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(build(model.spec).eval(), Path(folder) / "backbone.onnx")
        backbone = open_session((Path(folder) / "backbone.onnx").read_bytes(), device, threads)
    compiled = torch.compile(model, dynamic=False)
    return {
        "onnx": lambda x: logits(session, x),
        "again": lambda x: logits(again, x),
        "backbone": lambda x: logits(backbone, x),
        "eager": lambda x: in_torch(model, x, device),
        "compiled": lambda x: in_torch(compiled, x, device),
    }


@torch.inference_mode()
def in_torch(model: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray, device: str) -> np.ndarray:
    return model(torch.from_numpy(x).to(device)).cpu().numpy()  # pixels in, logits out, as a server needs them


def warmed_up(calls: dict[str, Call], x: np.ndarray) -> float:
    """Seconds of the longest first call: compiling. Who does not start (no C++ compiler, for instance) is left out."""
    longest = 0.0
    for name, call in list(calls.items()):
        start = time.perf_counter()
        try:
            call(x)
        except Exception as error:
            print(f"{name} does not run here: {str(error).splitlines()[0]}", file=sys.stderr)
            del calls[name]
            continue
        longest = max(longest, time.perf_counter() - start)
        for _ in range(5):
            call(x)
    return longest


def race(calls: dict[str, Call], x: np.ndarray, seconds: float) -> dict[str, dict[str, Any]]:
    """Rounds of every contestant until the time is up, in an order drawn anew: who follows torch finds cold caches."""
    order = random.Random(0)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    until = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < until or len(spent["onnx"]) < PARTS:
        for name, call in order.sample(list(calls.items()), len(calls)):
            start = time.perf_counter()
            call(x)
            spent[name].append(time.perf_counter() - start)
    times = {name: np.array(rounds) for name, rounds in spent.items()}
    return {name: row(times[name], times["onnx"], len(x)) for name in times}


def row(times: np.ndarray, onnx: np.ndarray, batch: int) -> dict[str, Any]:
    p50, p99 = np.percentile(1000 * times, [50, 99])
    parts = zip(np.array_split(times, PARTS), np.array_split(onnx, PARTS))
    ratios = [float(np.median(ours) / np.median(theirs)) for ours, theirs in parts]
    return {
        "images_per_second": round(1000 * batch / p50, 1),
        "p50_ms": round(p50, 4),
        "p99_ms": round(p99, 4),
        "calls": len(times),
        "time_ratio_to_onnx": round(float(np.median(times) / np.median(onnx)), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def table(batch: int, rows: dict[str, dict[str, Any]], compiling: float) -> str:
    head = f"batch {batch} (n = {rows['onnx']['calls']} calls of each; compiling took {compiling:.1f} s)"
    lines = [
        f"  {name:9} {r['images_per_second']:>9,.0f} images/s   p50 {r['p50_ms']:8.3f}   p99 {r['p99_ms']:8.3f} ms   "
        f"ratio {r['time_ratio_to_onnx']:6.3f}  ({r['ratio_spread'][0]:.3f} to {r['ratio_spread'][1]:.3f})"
        for name, r in rows.items()
    ]
    return "\n".join([head, *lines])


def machine(device: str, threads: int) -> dict[str, Any]:
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
