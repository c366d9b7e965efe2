"""How fast are images prepared, and are they drawn faster than training eats them?

    python -m benchmarks.data                       # generated photos, 500 x 375, as ImageNet's
    python -m benchmarks.data --width 2000          # as a telephone's
    python -m benchmarks.data FOLDER --size 64      # an image folder, CLASS/IMAGE

Prepared (hashed, decoded, resized, kept, hashed perceptually, written) against one pass of torchvision's ImageFolder
over the same files with as many processes. Runs alternate; medians; CPU seconds beside wall seconds, since the first
bear a busy machine better. The loader is set against a plain training step of the shipped backbone, without any attack:
what adversarial training consumes is a tenth of that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from autolora.backbones import load_classifier
from autolora.data import augmentation, take, to_pixels
from stages.folders import folder
from stages.store import Store
from stages.work import cores

BACKBONE = Path("models/pretrained/resnet10s-cifar10-linf8.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=int, default=500, help="of generated photos; the height is three quarters")
    parser.add_argument("--images", type=int, default=1000, help="to generate, where no folder is given")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        raw = arguments.folder or generate(Path(scratch) / "raw", arguments.images, arguments.width)
        count = sum(1 for _ in folder(raw))
        print(f"{count} images to {arguments.size} pixels, {cores()} processes, {arguments.runs} runs each")
        prepared, plain = alternate(
            lambda: prepare(raw, arguments.size), lambda: image_folder(raw, arguments.size), arguments.runs
        )
        for name, (wall, cpu) in (("prepare", prepared), ("ImageFolder", plain)):
            print(f"{name:12} {count / wall:8.0f} images/s   {1000 * cpu / count:6.2f} ms of CPU per image")
        print(
            f"ratio        {plain[0] / prepared[0]:8.2f} by wall   {plain[1] / prepared[1]:6.2f} by CPU (target: 1.5)"
        )
    drawn, eaten = loader(32), training_step(32)
    print(f"loader       {drawn:8.0f} images/s of 32 pixels; a plain training step eats {eaten:.0f}/s")


def generate(root: Path, count: int, width: int) -> Path:
    """Photos in their statistics: clouds at every scale, JPEG quality 90."""
    rng = np.random.default_rng(0)
    for index in range(count):
        layers = [rng.normal(size=(375 // s + 1, 500 // s + 1, 3)) * s**0.7 for s in (1, 4, 16, 64)]
        shown = sum(np.kron(layer, np.ones((s, s, 1)))[:375, :500] for layer, s in zip(layers, (1, 4, 16, 64)))
        path = root / f"class{index % 4}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.clip(128 + 4 * shown, 0, 255).astype(np.uint8))
        image.resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def alternate(a: Callable[[], None], b: Callable[[], None], runs: int) -> list[tuple[float, float]]:
    """Median wall and CPU seconds of each; the first of either warms the page cache up, outside the clock."""
    a()
    b()
    times: list[list[tuple[float, float]]] = [[], []]
    for _ in range(runs):
        for function, measured in zip((a, b), times):
            measured.append(clocked(function))
    return [(statistics.median(w for w, _ in m), statistics.median(c for _, c in m)) for m in times]


def clocked(function: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    function()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def prepare(raw: Path, size: int) -> None:
    """Into an empty store, and from there into an array: all the work on pixels that stages.prepare does."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch), size)
        names = [row["sha256"] for row in store.decode(folder(raw)) if not row["reason"]]
        with open(Path(scratch) / "images.npy", "wb") as file:
            for block in store.read(names):
                file.write(block.data)


def image_folder(raw: Path, size: int) -> None:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    for _ in DataLoader(ImageFolder(raw, steps), batch_size=64, num_workers=cores()):
        pass


def loader(size: int, count: int = 20_000, batch: int = 128) -> float:
    """Images/s of batches drawn at random from a memory-mapped file, cropped and flipped."""
    with tempfile.TemporaryDirectory() as scratch:
        np.save(f"{scratch}/images.npy", np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8))
        images = np.load(f"{scratch}/images.npy", mmap_mode="r")
        generator, vary = torch.Generator().manual_seed(0), augmentation("auto", size, size)
        order = torch.randperm(count, generator=generator).split(batch)
        start = time.perf_counter()
        for index in order:
            draws = vary.draw(len(index), generator)
            to_pixels(vary.apply(take(images, index, torch.device("cpu")), draws))
        return count / (time.perf_counter() - start)


def training_step(size: int, batch: int = 128, steps: int = 5) -> float:
    model = load_classifier(BACKBONE).train()
    x, y = torch.rand(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        torch.nn.functional.cross_entropy(model(x), y).backward()

    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
