"""Which learning-rate rule serves small data sets? Fine-tunings side by side, judged on images that no rule saw.

    python -m benchmarks.rate_rules run PATH --rules paper best vanilla@0.01 --seeds 0 1 2
    python -m benchmarks.rate_rules run PATH --rules best vanilla@0.01 --seeds 0 1 2 --on test
    python -m benchmarks.rate_rules pair PATH --rules vanilla@0.01 best --seeds 0 1 2
    python -m benchmarks.rate_rules table

PATH holds data/{cifar100-20,dtd10,trashnet} and weights/ of small robust networks. A rule is one of
objectives.REFERENCES, with AutoLoRa's loss; or METHOD@RATE: a fixed first rate, with the baselines' schedule
(autolora@0.03: `best` from 0.03 on); or settings of autolora.finetune, as attack=pgd,rate=0.03.
Each data set is cut once, class by class, into a pool, a part to select on and a test part; a seed draws the training
images and the rule's own validation images from the pool. `--on test` attacks the networks that were kept on the test
part: once, for what was chosen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageOps
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from autolora.attacks.pgd import pgd
from autolora.backbones.frozen import frozen
from autolora.backbones.loading import load_backbone
from autolora.common.command_line import Command
from autolora.common.files import write_json
from autolora.data.batches import to_pixels
from autolora.data.pictures import formats
from autolora.threat import Threat
from autolora.training.controllers import rise
from autolora.training.loop import finetune
from stages.dataset.arrays import tiles

RESULTS = Path(".work/controllers")
SIDE = 32
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2471, 0.2435, 0.2616]}
SHIPPED = Path(__file__).resolve().parents[1] / "models/pretrained/resnet10s-cifar10-linf8.safetensors"
NETS: dict[str, tuple[str, dict[str, Any], str]] = {  # file, how it is loaded, eps
    "shipped": (
        str(SHIPPED),  # the small backbone with batch norm that ships
        dict(arch="resnet10t", stem="nopool", options={"channels": [24, 48, 96, 192], "stem_width": 16}),
        "8/255",
    ),
    "resnet4b": (
        "cifar10-resnet4b-robust2.pth",
        dict(arch="benchmarks.zoo:ResNetB", options={"stem": 16, "widths": [32, 32]}, **CIFAR),
        "2/255",
    ),
    "resnet20": ("cifar10-resnet20-robust2.pth", dict(arch="benchmarks.zoo:ResNet20"), "2/255"),
    "natural20": ("cifar10-resnet20-natural.pth", dict(arch="benchmarks.zoo:ResNet20"), "2/255"),  # not robust at all
    "resnet10t": (
        "cifar10-resnet10t-linf8.safetensors",
        dict(arch="resnet10t", stem="nopool", options={"channels": [32, 64, 128, 256], "stem_width": 16}),
        "8/255",
    ),
}
SETS = {  # images a class: in training, in the rule's validation part, to select on, in the test part
    "cifar100-20": (50, 10, 50, 50),
    "dtd10": (60, 10, 20, 30),
    "trashnet": (0.4, 0.1, 0.2, 0.3),  # unbalanced: shares
}
AMOUNTS = {  # the same set with fewer and with more images to train on; all else is the same, the parts too
    "cifar100-20-of-20": (20, 10, 50, 50),
    "cifar100-20-of-150": (150, 10, 50, 50),
}
CUTS = SETS | AMOUNTS
Part = tuple[Tensor, Tensor]


# --- data ------------------------------------------------------------------------------------------------------------


def by_class(path: Path, name: str) -> list[np.ndarray]:
    which = name.partition("-of-")[0]
    folder = path / "data" / which
    if which == "cifar100-20":
        return [tiles(file) for file in sorted(folder.glob("train/*.png"))]
    classes = sorted(p for p in folder.iterdir() if p.is_dir())
    return [np.stack([small(file) for file in sorted(p.glob("*.jpg"))]) for p in classes]


def small(file: Path) -> np.ndarray:
    with Image.open(file, formats=formats()) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR))


def parts(path: Path, name: str, seed: int) -> dict[str, Part]:
    """train, val, select, test; of CIFAR-100 all are cut from its training images, and its test images stay unseen."""
    found: dict[str, list[tuple[np.ndarray, int]]] = {k: [] for k in ("train", "val", "select", "test")}
    cut, draw = np.random.default_rng(0), np.random.default_rng(seed + 1)
    for label, images in enumerate(by_class(path, name)):
        counts = [int(n if n >= 1 else n * len(images)) for n in CUTS[name]]
        images = images[cut.permutation(len(images))]
        test, select, pool = np.split(images, [counts[3], counts[3] + counts[2]])
        pool = pool[draw.permutation(len(pool))]
        drawn = (pool[: counts[0]], pool[counts[0] : counts[0] + counts[1]], select, test)
        for part, some in zip(found.values(), drawn):
            part.append((some, label))
    return {k: joined(v) for k, v in found.items()}


def joined(pieces: list[tuple[np.ndarray, int]]) -> Part:
    images = torch.from_numpy(np.concatenate([images for images, _ in pieces])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([label for images, label in pieces for _ in images])


# --- one run ---------------------------------------------------------------------------------------------------------


def settings(rule: str) -> dict:
    if "=" in rule:
        return {key: yaml.safe_load(value) for key, value in (pair.split("=") for pair in rule.split(","))}
    method, at, rate = rule.partition("@")
    if not at:
        return {"reference": rule}
    return {"method": method, "rate": float(rate), "reference": "best" if method == "autolora" else "paper"}


def run(path: Path, net: str, name: str, rule: str, seed: int, epochs: int) -> dict:
    """One fine-tuning, judged on the part to select on; the network is kept, to be judged on the test part later."""
    data, threat = parts(path, name, seed), Threat("linf", NETS[net][2])
    start = time.process_time()
    tuned = finetune(
        backbone(path, net, data, seed), data["train"], data["val"], threat,
        epochs=epochs, seed=seed, progress=False, **settings(rule),
    )  # fmt: skip
    seconds = time.process_time() - start
    save_model(tuned.model, str(kept(net, name, rule, epochs, seed)))
    shown = ("epoch", "lr", "lambda1", "natural_accuracy", "val_clean", "val_robust", "event")
    history = [{k: record[k] for k in shown} for record in tuned.history]
    more = {"best_epoch": tuned.best_epoch, "seconds": round(seconds, 1), "history": history}
    return judged(tuned.model, data["select"], threat) | more


def confirm(path: Path, net: str, name: str, rule: str, seed: int, epochs: int) -> dict:
    """The same fine-tuning on the test part."""
    data = parts(path, name, seed)
    model = backbone(path, net, data, seed)
    load_model(model, kept(net, name, rule, epochs, seed))
    return judged(model, data["test"], Threat("linf", NETS[net][2]))


def backbone(path: Path, net: str, data: dict[str, Part], seed: int) -> nn.Module:
    file, how, _ = NETS[net]
    return load_backbone(weights=path / "weights" / file, classes=int(data["train"][1].max()) + 1, seed=seed, **how)


def kept(net: str, name: str, rule: str, epochs: int, seed: int) -> Path:
    return RESULTS / f"{net}.{name}.{rule}.{epochs}.{seed}.safetensors"


def hits(model: nn.Module, part: Part, threat: Threat) -> tuple[Tensor, Tensor]:
    """Which images are right: clean, and after PGD-20 with a random start."""
    x, y = to_pixels(part[0]), part[1]
    draw = torch.Generator().manual_seed(0)
    with frozen(model):
        attacked = [pgd(model, a, b, threat, 20, generator=draw) for a, b in zip(x.split(256), y.split(256))]
        with torch.no_grad():
            return model(x).argmax(1) == y, model(torch.cat(attacked)).argmax(1) == y


def judged(model: nn.Module, part: Part, threat: Threat) -> dict:
    clean, robust = (round(100 * right.double().mean().item(), 2) for right in hits(model, part, threat))
    return {"n": len(part[1]), "clean": clean, "robust": robust}


def pair(args: argparse.Namespace) -> None:
    """Two rules on the test part, image by image over all seeds: above zero the second one is better."""
    for name in args.sets:
        shares = [paired_hits(args, name, rule) for rule in args.rules]
        z = [rise(*(share[k].tolist() for share in shares)) for k in (0, 1)]
        print(f"{name}: {' to '.join(args.rules)}: clean z = {z[0]:.2f}, PGD-20 z = {z[1]:.2f}")


def paired_hits(args: argparse.Namespace, name: str, rule: str) -> Tensor:
    """[2,n]: the share of seeds under which each image is right."""
    found = []
    for seed in args.seeds:
        data = parts(args.path, name, seed)
        model = backbone(args.path, args.net, data, seed)
        load_model(model, kept(args.net, name, rule, args.epochs, seed))
        found.append(torch.stack(hits(model, data["test"], Threat("linf", NETS[args.net][2]))))
    return torch.stack(found).double().mean(0)


def run_all(args: argparse.Namespace) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    job = run if args.on == "select" else confirm
    for seed, name, rule in itertools.product(args.seeds, args.sets, args.rules):
        which = {"net": args.net, "name": name, "rule": rule, "epochs": args.epochs, "seed": seed}
        file = RESULTS / f"{'.'.join(map(str, which.values()))}.{args.on}.json"
        if file.exists():
            continue
        result = which | {"on": args.on} | job(args.path, **which)
        write_json(file, result)
        print(f"{file.stem}: clean {result['clean']} PGD-20 {result['robust']} (n = {result['n']})", flush=True)


# --- the table -------------------------------------------------------------------------------------------------------


def table() -> None:
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))]
    key = ("net", "on", "name", "epochs", "rule")
    print("| network | part | set | epochs | rule | runs | clean | PGD-20 |\n|---|---|---|---|---|---|---|---|")
    for group, runs in itertools.groupby(
        sorted(results, key=lambda r: [r[k] for k in key]), lambda r: [r[k] for k in key]
    ):
        some = list(runs)
        print(f"| {' | '.join(map(str, group))} | {len(some)} | {spread(some, 'clean')} | {spread(some, 'robust')} |")


def spread(runs: list[dict], key: str) -> str:
    values = [r[key] for r in runs]
    return f"{mean(values):.1f}" + (f" ({stdev(values):.1f})" if len(values) > 1 else "")


def main() -> None:
    parser = Command(
        __doc__,
        reads="PATH/data and PATH/weights",
        writes="one JSON file for each run in .work/controllers; tables on stdout",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    some, two = commands.add_parser("run"), commands.add_parser("pair")
    for command in (some, two):
        command.add_argument("path", type=Path)
        command.add_argument("--net", choices=NETS, default="resnet4b")
        command.add_argument("--sets", nargs="+", choices=CUTS, default=list(SETS))
        command.add_argument("--rules", nargs="+", required=True)
        command.add_argument("--seeds", nargs="+", type=int, default=[0])
        command.add_argument("--epochs", type=int, default=60)
    some.add_argument("--on", choices=("select", "test"), default="select")
    commands.add_parser("table")
    args = parser.parse_args()
    {"run": run_all, "pair": pair, "table": lambda _: table()}[args.command](args)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
