"""Seconds an epoch of AutoLoRa takes here, against the same method written the way the released code works.

    python -m benchmarks.training_speed                                   # ResNet-20 at 32 pixels
    python -m benchmarks.training_speed --arch shipped --size 16          # the backbone that ships, as by default
    python -m benchmarks.training_speed --arch resnet18 --stem lowres --images 5120 --batch 512     # a GPU

Side by side in one run, alternating, the fastest of several repeats each:
  ours      autolora.training.loop: one epoch, the validation attack, SA and the gradient cosine included
  released  fp32, channels first, attack gradients through unfrozen parameters, two sweeps over all parameters a step,
            noise drawn on the CPU, one more pass over the training set for SA, PGD-10 over a test set a fifth its size
  single    ours with one gradient an image (`attack: single`, `reference: best`): so many epochs that validation images
            are looked at once, divided by their number
  floor     10 input-gradient passes and 2 training passes a step in the form that ours uses: what cannot be left out
On a CPU the clock is the processor time of this process (other work on the machine does not count), on a GPU the wall.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from autolora.backbones.loading import load_backbone
from autolora.common.command_line import Command
from autolora.common.malloc import freed_memory_kept
from autolora.threat import Threat
from autolora.training.branch import all_layers, factor_shapes
from autolora.training.controllers import between_looks, scalars
from autolora.training.learner import Learner
from autolora.training.loop import one_epoch
from autolora.training.resume import RunState
from autolora.training.settings import Settings
from benchmarks.rate_rules import NETS
from benchmarks.zoo import IMAGENET, Normalized, ResNet20

EPS = 8 / 255


# --- the released code's way -----------------------------------------------------------------------------------------


class Lora(nn.Module):
    """A layer and its branch, switched by a flag; as in loralib."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        a, b = factor_shapes(layer)
        self.layer, self.on = layer, False
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(a)), nn.Parameter(torch.zeros(b))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        if self.on:
            weight = weight + (self.lora_B @ self.lora_A).view(weight.shape) / 8
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)


def with_lora(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's own stub lacks it
    model.requires_grad_(True)
    for name, layer in all_layers(model):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Lora(layer))
    return model


def switch(model: nn.Module, on: bool) -> None:
    """The sweeps over all parameters and modules, by substring of the name."""
    for module in model.modules():
        if isinstance(module, Lora):
            module.on = on
    for name, parameter in model.named_parameters():
        natural = "lora" in name or "fc" in name or "head" in name
        parameter.requires_grad = natural if on else "lora" not in name


def attack(model: nn.Module, x: Tensor, y: Tensor, start: bool) -> Tensor:
    model.eval()
    adv = x + torch.empty(x.shape).uniform_(-EPS, EPS).to(x.device) if start else x.clone()
    for _ in range(10):
        adv = adv.detach().requires_grad_(True)
        loss = F.cross_entropy(model(adv), y, reduction="sum")
        loss.backward()
        assert adv.grad is not None
        adv = adv.detach() + EPS / 4 * adv.grad.sign()
        adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
    return adv.detach()


def released_epoch(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, test: tuple) -> None:
    lambda1, lambda2 = scalars(0.5)
    for index in torch.randperm(len(x)).split(BATCH):
        seen, label = x[index], y[index]
        switch(model, on=False)
        adv = attack(model, seen, label, start=True)
        model.train()
        switch(model, on=True)
        z = model(seen)
        switch(model, on=False)
        z_adv = model(adv)
        kl = F.kl_div(F.log_softmax(z_adv, 1), F.softmax(z, 1), reduction="batchmean")
        loss = lambda1 * F.cross_entropy(z, label) + (1 - lambda1) * F.cross_entropy(z_adv, label) + lambda2 * kl
        switch(model, on=True)
        for parameter in model.parameters():
            parameter.requires_grad = True
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()
    model.eval()
    switch(model, on=True)
    with torch.no_grad():
        for part, label in zip(x.split(BATCH), y.split(BATCH)):
            (model(part).argmax(1) == label).sum().item()
    switch(model, on=False)
    for part, label in zip(test[0].split(BATCH), test[1].split(BATCH)):
        adv = attack(model, part, label, start=False)
        with torch.no_grad():
            (model(adv).argmax(1) == label).sum().item()


# --- the floor -------------------------------------------------------------------------------------------------------


def floor(learner: Learner, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        for _ in range(10):
            seen = x.detach().requires_grad_(True)
            torch.autograd.grad(F.cross_entropy(learner.attack_view(seen).float(), y, reduction="sum"), seen)
        learner.model.train()
        for _ in range(2):
            loss = F.cross_entropy(learner.plain(x).float(), y)
            torch.autograd.grad(loss, list(learner.model.parameters()))


# --- the clock -------------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        work()
        return (time.process_time() - start) / torch.get_num_threads()
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace) -> dict:
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    model = network(arguments)
    n, size = arguments.images, arguments.size
    x, y = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8), torch.arange(n) % 10
    held = max(10, n // 19)  # 5 % of training and validation together
    settings = Settings(
        Threat("linf", EPS),
        reference="paper",
        attack="pgd",
        batch_size=BATCH,
        compile=arguments.compile,
        precision=arguments.precision,
        channels_last=not arguments.channels_first,
    )
    learner = Learner(model, (x, y), (x[:held], y[:held]), settings, device)
    one_gradient = replace(settings, reference="best", attack="single")
    single = Learner(model, (x, y), (x[:held], y[:held]), one_gradient, device)
    every = between_looks(n, held, one_gradient.epochs)
    released = with_lora(model).to(device)
    optimiser = torch.optim.SGD(released.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    pixels, labels = x.to(device).float() / 255, y.to(device)
    test = (pixels[: n // 5], labels[: n // 5])
    batch = learner.laid_out(pixels[:BATCH])
    steps, progress, silent = -(-n // BATCH), RunState(), tqdm(disable=True)
    works = {
        "ours": freed_memory_kept()(lambda: one_epoch(learner, progress, silent, None)),
        "single": freed_memory_kept()(
            lambda: [one_epoch(single, RunState(epoch), silent, None) for epoch in range(every)]
        ),
        "released": lambda: released_epoch(released, optimiser, pixels, labels, test),
        "floor": freed_memory_kept()(lambda: floor(learner, batch, labels[:BATCH], steps)),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(arguments.repeats + 1):
        for name, work in works.items():
            elapsed = seconds(work, device) / (every if name == "single" else 1)
            if repeat:  # the first of each is warm-up
                times[name].append(elapsed)
    return report(arguments, times, n)


def network(arguments: argparse.Namespace) -> nn.Module:
    if arguments.arch == "resnet20":
        return Normalized(ResNet20(), *IMAGENET)
    if arguments.arch == "shipped":
        file, how, _ = NETS["shipped"]
        return load_backbone(weights=file, classes=10, image_size=arguments.size, **how)
    return load_backbone(arguments.arch, classes=10, image_size=arguments.size, stem=arguments.stem)


def report(arguments: argparse.Namespace, times: dict[str, list[float]], n: int) -> dict:
    best = {name: min(values) for name, values in times.items()}
    return {
        "arch": arguments.arch,
        "images": n,
        "batch": BATCH,
        "size": arguments.size,
        "device": arguments.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": {name: [round(v, 3) for v in values] for name, values in times.items()},
        "images_per_second": {name: round(n / best[name], 1) for name in ("ours", "single", "released")},
        "single_times_faster": round(best["ours"] / best["single"], 2),
        "times_faster": round(best["released"] / best["ours"], 2),
        "outside_the_floor": round(1 - best["floor"] / best["ours"], 3),
    }


def main() -> None:
    global BATCH
    parser = Command(
        __doc__,
        reads="nothing: images and weights are made up",
        writes="seconds an epoch, on stdout",
    )
    parser.add_argument("--arch", default="resnet20", help="resnet20, shipped (models/pretrained), or any timm model")
    parser.add_argument("--stem", default="timm")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-first", action="store_true")
    arguments = parser.parse_args()
    BATCH = arguments.batch
    print(json.dumps(measure(arguments), indent=2))


BATCH = 128

if __name__ == "__main__":
    main()
