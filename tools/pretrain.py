"""Rebuild the small robust backbone that ships in models/pretrained/. Run by hand, not by `dvc repro`:

python -m tools.pretrain                      # CIFAR-10 by torchvision's download
python -m tools.pretrain --sheets FOLDER      # or from {train,test}/CLASS.png, sheets of 32 x 32 tiles
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from autolora.attacks.pgd import pgd
from autolora.backbones.classifier import Spec, build, save_classifier
from autolora.common.command_line import Command
from autolora.common.files import write_json
from autolora.data.batches import to_pixels
from autolora.threat import Threat
from autolora.training.pretraining import pretrain
from stages.dataset.arrays import tiles

OUTPUT = Path("models/pretrained/resnet10s-cifar10-linf8.safetensors")
SPEC = Spec("resnet10t", 10, 32, stem="nopool", options={"channels": [24, 48, 96, 192], "stem_width": 16})
THREAT = Threat("linf", "8/255")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def main() -> None:
    parser = Command(
        __doc__,
        reads="CIFAR-10 (downloaded into .work/cifar10, or from --sheets)",
        writes="models/pretrained/",
    )
    parser.add_argument("--sheets", type=Path, help="folder with {train,test}/CLASS.png")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=2, help="attack steps in training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    train, test = (_cifar10(part, arguments.sheets) for part in ("train", "test"))
    work = Path(".work/pretrain")
    work.mkdir(parents=True, exist_ok=True)
    model = pretrain(
        build(SPEC),
        *train,
        THREAT,
        epochs=arguments.epochs,
        steps=arguments.steps,
        checkpoint=work / f"{arguments.epochs}.pt",
    )
    record = {
        "spec": SPEC.to_json(),
        "threat": THREAT.as_record(),
        "training_images": len(train[0]),
        "test_images": len(test[0]),
        **_accuracies(model, *test),
    }
    record["weights_sha256"] = save_classifier(model, OUTPUT, threat=str(THREAT), trained_on="CIFAR-10")
    write_json(OUTPUT.with_suffix(".json"), record)
    print(record)


def _accuracies(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Clean and PGD-20 accuracy over several radii, on test images that training never saw."""
    model.requires_grad_(False)
    radii = {"clean": None, "pgd20_2_255": "2/255", "pgd20_4_255": "4/255", "pgd20_8_255": "8/255"}
    right = dict.fromkeys(radii, 0)
    for x, y in zip(to_pixels(images).split(500), labels.split(500)):
        for name, eps in radii.items():
            seen = x if eps is None else pgd(model, x, y, Threat("linf", eps), 20, random_start=False)
            right[name] += int((model(seen).argmax(1) == y).sum())
    return {name: round(100 * count / len(labels), 2) for name, count in right.items()}


def _cifar10(part: str, sheets: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n,3,32,32] and labels."""
    if sheets is not None:
        images = [tiles(sheets / part / f"{name}.png") for name in CLASSES]  # uint8 [n,32,32,3] each
        labels = torch.arange(10).repeat_interleave(torch.tensor([len(i) for i in images]))
        return torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous(), labels
    from torchvision.datasets import CIFAR10

    data = CIFAR10(".work/cifar10", train=part == "train", download=True)
    return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


if __name__ == "__main__":
    main()
