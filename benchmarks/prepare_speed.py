"""How fast are images prepared, and are they drawn faster than training eats them?

    python -m benchmarks.prepare_speed                       # three sets of generated photos, about two minutes
    python -m benchmarks.prepare_speed FOLDER --size 64      # an image folder, CLASS/IMAGE

`dvc repro prepare`'s own function (hashed, decoded, resized, kept, hashed perceptually, near-duplicates, manifest,
written) in an empty workspace, against one pass of torchvision's ImageFolder and DataLoader over the same files to the
same size, with as many processes. The two take turns; a ratio is taken within each round. CPU seconds stand beside
wall seconds, since they bear a busy machine better. What bounds the ratio is told as well: how long Pillow takes in
one process to decode, which both have to do, and what either takes in all without its machinery.

The loader (one thread) is set against a plain training step of the same threads, without any attack: what adversarial
training eats is a tenth of that.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
import yaml
from PIL import Image
from torch import nn

from autolora.backbones.classifier import load_classifier
from autolora.common.command_line import Command
from autolora.common.processes import cores
from autolora.data.batches import StoredImages, augmentation, stream, to_pixels
from autolora.data.ragged import rectangles
from stages import prepare as stage
from stages.dataset.decode import decode, read_file, silent
from stages.dataset.decoding_pool import CHUNK
from stages.dataset.folders import folder
from stages.dataset.image_statistics import described

ROOT = Path(__file__).resolve().parent.parent
BACKBONE = ROOT / "models/pretrained/resnet10s-cifar10-linf8.safetensors"
SETS = [(150, 64, 4000), (500, 224, 2000), (2000, 224, 160)]  # width of the photos, size, how many
Times = list[tuple[float, float]]  # of each round: wall and CPU seconds


def main() -> None:
    parser = Command(
        __doc__,
        reads="FOLDER, or photos that it makes itself",
        writes="a temporary folder; a table on stdout",
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.folder:
        compare(arguments.folder.resolve(), arguments.size, arguments.runs)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            for width, size, count in SETS:
                compare(generate(Path(scratch) / str(width), count, width), size, arguments.runs)
    loaders()


# --- preparing --------------------------------------------------------------------------------------------------------


def compare(raw: Path, size: int, runs: int) -> None:
    files = [found.content for found in folder(raw) if isinstance(found.content, str)]
    shape = "{} x {}".format(*Image.open(files[0]).size)
    print(f"\n{len(files)} images, the first {shape}, to {size} pixels; {cores()} processes, {runs} rounds")
    prepared, plain = alternate(raw, size, runs)
    for name, times in (("prepare", prepared), ("ImageFolder", plain)):
        wall, cpu = median(w for w, _ in times), median(c for _, c in times)
        print(f"  {name:12}{len(files) / wall:7.0f} images/s  {1000 * cpu / len(files):6.2f} ms of CPU per image")
    for kind, ratios in zip(("wall", "CPU"), zip(*((p[0] / q[0], p[1] / q[1]) for p, q in zip(plain, prepared)))):
        print(f"  {kind:4} ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    bound(files[:200], size)


def generate(root: Path, count: int, width: int) -> Path:
    """Photos in their statistics: windows of one great picture of clouds at every scale, JPEG quality 90."""
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=(1500 // s + 1, 2000 // s + 1, 3)) * s**0.7 for s in (1, 4, 16, 64)]
    shown = sum(np.kron(layer, np.ones((s, s, 1)))[:1500, :2000] for layer, s in zip(layers, (1, 4, 16, 64)))
    clouds = Image.fromarray(np.clip(128 + 4 * shown, 0, 255).astype(np.uint8))
    for index in range(count):
        path = root / f"class{index % 4}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        left, top = int(rng.integers(1500)), int(rng.integers(1125))
        photo = clouds.crop((left, top, left + 500, top + 375))
        photo.resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(path, quality=90)
    return root


def alternate(raw: Path, size: int, runs: int) -> tuple[Times, Times]:
    """The first run of either warms the page cache up, outside the clock."""
    rounds = [(prepare(raw, size), clocked(lambda: image_folder(raw, size))) for _ in range(runs + 1)][1:]
    return [first for first, _ in rounds], [second for _, second in rounds]


def clocked(function: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    function()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def prepare(raw: Path, size: int) -> tuple[float, float]:
    """The stage itself, where nothing was prepared before; to make the workspace and remove it is outside the clock."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"source": "folder", "path": str(raw), "image_size": size, "stored_size": None}
    os.environ.pop("AUTOLORA_WORK", None)  # it would hold what an earlier round decoded
    with tempfile.TemporaryDirectory() as workspace, chdir(workspace):
        Path("params.yaml").write_text(yaml.safe_dump(params))
        shutil.copy(ROOT / "dvc.yaml", ".")
        return clocked(stage.prepare)


def image_folder(raw: Path, size: int) -> None:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    for _ in DataLoader(ImageFolder(raw, steps), batch_size=64, num_workers=cores()):
        pass


def bound(files: list[str], size: int) -> None:
    """Milliseconds per image in one process, best of three: what no arrangement of the work takes away."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms import v2

    steps = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    contents, opened = [read_file(file) for file in files], [default_loader(file) for file in files]
    theirs, loaded = least(lambda: [steps(default_loader(file)) for file in files]), least(lambda: decoded(contents))
    ours, turned = least(lambda: described_all(contents, size)), least(lambda: [steps(image) for image in opened])
    print(
        f"  one process, ms: Pillow's whole decoding {1000 * loaded / len(files):.2f}; ImageFolder without its loader "
        f"{1000 * theirs / len(files):.2f}, of which the transform {1000 * turned / len(files):.2f}; "
        f"ours, decoded to described, {1000 * ours / len(files):.2f}"
    )


def decoded(contents: list[bytes]) -> None:
    for content in contents:
        Image.open(io.BytesIO(content)).load()


def described_all(contents: list[bytes], size: int) -> None:
    for first in range(0, len(contents), CHUNK):
        with silent():
            squares = [decode(content, size)[0] for content in contents[first : first + CHUNK]]
        described(squares)


def least(function: Callable[[], object], repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return min(seconds)


# --- drawing ----------------------------------------------------------------------------------------------------------


def loaders() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        small, whole = squares(Path(scratch), 20_000, 32), oblong(Path(scratch), 600, 256)
        shipped, resnet = load_classifier(BACKBONE), timm.create_model("resnet18", num_classes=100)
        for name, images, size, model, batch in (
            ("32 pixels", small, 32, shipped, 128),
            ("224 of 256", whole, 224, resnet, 32),
        ):
            drawn, eaten = drawn_per_second(images, size, batch), eaten_per_second(model, size, batch)
            what = type(model).__name__ if model is resnet else "the shipped backbone"
            print(f"\nloader, {name}: {drawn:.0f} images/s; a plain training step of {what} eats {eaten:.0f}/s")


def squares(scratch: Path, count: int, size: int) -> StoredImages:
    np.save(scratch / "squares.npy", np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8))
    return np.load(scratch / "squares.npy", mmap_mode="r")


def oblong(scratch: Path, count: int, size: int) -> StoredImages:
    """Upright and lying photos, 4:3, short side at `size`."""
    shapes = np.array([[size, size * 4 // 3], [size * 4 // 3, size]] * (count // 2))
    total = int(3 * shapes.prod(1).sum())
    np.save(scratch / "oblong.npy", np.random.default_rng(0).integers(0, 256, total, np.uint8))
    return rectangles(np.load(scratch / "oblong.npy", mmap_mode="r"), shapes)


def drawn_per_second(images: StoredImages, size: int, batch: int) -> float:
    """Of batches at random from a memory-mapped file, varied as training does."""
    generator, vary = torch.Generator().manual_seed(0), augmentation("auto", images.shape[-1], size)
    order = torch.randperm(len(images), generator=generator).split(batch)
    start = time.perf_counter()
    for index, stored in zip(order, stream(images, order, torch.device("cpu"))):
        to_pixels(vary.apply(stored, vary.draw(len(index), generator)))
    return len(images) / (time.perf_counter() - start)


def eaten_per_second(model: nn.Module, size: int, batch: int, steps: int = 3) -> float:
    x, y = torch.rand(batch, 3, size, size), torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        torch.nn.functional.cross_entropy(model(x), y).backward()

    model.train().requires_grad_(True)
    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * batch / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
