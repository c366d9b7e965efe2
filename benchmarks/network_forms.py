"""What a forward and an input gradient cost in each form of a network that AutoAttack may use on a CPU.

    python -m benchmarks.network_forms                          # the robust nets, and made-up ResNets of 2 to 100 MFLOP
    python -m benchmarks.network_forms --spin                   # Square on a session of two threads, spinning or asleep

Forms: the network as it is (`plain`), folded and channels last in torch (`folded`), the same in bfloat16 (`half`), and
in onnxruntime. They take turns, one thread each, in the batch that an attack would choose; medians, in F, the plain
forward.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from autolora import Threat
from autolora.attacks.autoattack import black_box
from autolora.attacks.engine.fast_copies import folded_copy
from autolora.attacks.engine.onnx_network import InOnnxruntime
from autolora.attacks.engine.prepare import default_batch, operations
from autolora.common.command_line import Command
from autolora.common.malloc import freed_memory_kept
from autolora.export.conversion import traced
from autolora.export.runtime import open_session
from benchmarks.agreement_with_original import SHARED
from benchmarks.zoo import cifar500, load_zoo

ZOO = ("resnet2b", "resnet4b", "resnet20-robust2")
MADE_UP = (
    (8, 1, 2),
    (4, 3, 1),
    (16, 1, 2),
    (8, 3, 1),
    (16, 1, 1),
    (16, 3, 1),
    (32, 1, 1),
)  # width, blocks, first stride


class Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        first, second = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.body = nn.Sequential(first, nn.BatchNorm2d(out), nn.ReLU(), second, nn.BatchNorm2d(out))
        self.short = nn.Identity() if into == out else nn.Conv2d(into, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.short(x)).relu()


def resnet(width: int, blocks: int, first: int) -> nn.Module:
    layers, into = [nn.Conv2d(3, width, 3, first, 1), nn.ReLU()], width
    for stage in range(3):
        for block in range(blocks):
            layers.append(Block(into, width * 2**stage, 2 if stage and block == 0 else 1))
            into = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 10)).eval()


def in_half(view: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return view(x).float()


@torch.no_grad()
def forward(way: Callable[[Tensor], Tensor], x: Tensor) -> None:
    way(x)


def gradient(way: Callable[[Tensor], Tensor], x: Tensor) -> None:
    point = x.clone().requires_grad_(True)
    torch.autograd.grad(way(point).sum(), point)


def seconds(acts: list[Callable[[], None]], rounds: int) -> list[float]:
    """In turns, each once unheeded before it counts."""
    times: list[list[float]] = [[] for _ in acts]
    with freed_memory_kept():
        for _ in range(rounds):
            for act, found in zip(acts, times):
                act()
                begin = time.perf_counter()
                act()
                found.append(time.perf_counter() - begin)
    return [sorted(found)[rounds // 2] for found in times]


def row(name: str, model: nn.Module, images: Tensor, rounds: int) -> str:
    model.requires_grad_(False)
    x = images[: default_batch(images.device, model, images[:1])]
    view = folded_copy(model, x[:2])
    ways: list[Callable[[Tensor], Tensor]] = [
        model,
        view,
        partial(in_half, view),
        InOnnxruntime(view.model, x[:2], view),
    ]
    found = seconds([partial(act, way, x) for act in (forward, gradient) for way in ways], rounds)
    cells = [f"{t / found[0]:.2f}" for t in found]
    size = operations(model, x[:1]) / 1e6
    return f"| {name} | {size:.1f} | {len(x)} | {1e6 * found[0] / len(x):.0f} | " + " | ".join(cells) + " |"


def spinning(net: str, queries: int) -> None:
    torch.set_num_threads(2)
    x, y = cifar500(SHARED)
    content = traced(load_zoo(SHARED, net), (3, 32, 32)).SerializeToString()
    for asleep in (False, True) * 2:
        session, begin = open_session(content, threads=2, beside_torch=asleep), time.perf_counter()
        black_box(session, x[:32], y[:32], Threat("linf", "2/255"), queries=queries, show=False)
        print(f"{net}, {queries} queries, {'asleep' if asleep else 'spinning'}: {time.perf_counter() - begin:.1f} s")


def main() -> None:
    parser = Command(
        __doc__,
        reads="the small robust networks in ../shared/weights",
        writes="a table on stdout",
    )
    parser.add_argument("--spin", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    if chosen.spin:
        for net in ("resnet4b", "resnet20-robust2"):
            spinning(net, 400)
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = cifar500(SHARED)[0][:64].float().div(255)
    forms = ("plain", "folded", "half", "onnxruntime")
    print(
        "| network | MFLOP | batch | F, us | "
        + " | ".join(f"{f}, {a}" for a in ("F", "gradient") for f in forms)
        + " |"
    )
    print("|---" * 12 + "|")
    for net in ZOO:
        print(row(net, load_zoo(SHARED, net), images, chosen.rounds), flush=True)
    for size in MADE_UP:
        print(row("{} wide, {} blocks, stride {}".format(*size), resnet(*size), images, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()
