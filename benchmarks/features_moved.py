"""Is a backbone robust already? How far an attacker moves its features, beside how far two images are apart.

    python -m benchmarks.features_moved PATH

    moved = E |f(x + d) - f(x)|^2  /  E |f(x) - f(x')|^2

f is what the head is given, d the worst that ten steps of ascent find in the ball, x' another image. At 1 an attacker
makes of an image's features those of any other one, and no head can be robust on them. Neither labels nor a head take
part, so it can be asked before training. PATH, networks and images are those of benchmarks.rate_rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from autolora.attacks.pgd import ascent_direction, project, random_in_ball
from autolora.backbones.frozen import frozen
from autolora.backbones.layers import head_name
from autolora.common.command_line import Command
from autolora.data.batches import to_pixels
from autolora.threat import Threat
from benchmarks.rate_rules import NETS, SETS, backbone, parts

IMAGES, STEPS = 64, 10
RADII = ("1/255", "2/255", "4/255", "8/255", "16/255")


@contextmanager
def features(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from images to the input of the head, through which gradients go."""
    given: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0])

    def of(x: Tensor) -> Tensor:
        given.clear()
        model(x)
        return given[0].flatten(1)

    hook = model.get_submodule(head_name(model)).register_forward_pre_hook(keep)
    try:
        yield of
    finally:
        hook.remove()


def moved(model: nn.Module, x: Tensor, threat: Threat, seed: int = 0) -> float:
    draw = torch.Generator(x.device).manual_seed(seed)
    with frozen(model), features(model) as f:
        with torch.no_grad():
            before = f(x)
        apart = 2 * (before - before.mean(0)).square().sum(1).mean()  # of two images drawn at random
        worst = project(x + random_in_ball(x, threat, draw), x, threat)
        for _ in range(STEPS):
            worst = worst.detach().requires_grad_(True)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad((f(worst) - before).square().sum(), worst)
            worst = project(worst.detach() + threat.eps / 4 * ascent_direction(gradient, threat), x, threat)
        with torch.no_grad():
            return float((f(worst) - before).square().sum(1).mean() / apart)


def main() -> None:
    parser = Command(__doc__, reads="PATH/data and PATH/weights", writes="a table on stdout")
    parser.add_argument("path", type=Path)
    path = parser.parse_args().path
    print(f"| network | trained at | set | {' | '.join(RADII)} |\n|---|---|---|{'---|' * len(RADII)}")
    for net, (_, _, eps) in NETS.items():
        trained = "natural" if net.startswith("natural") else eps
        for name in SETS:
            data = parts(path, name, 0)
            model, x = backbone(path, net, data, 0), to_pixels(data["train"][0])
            x = x[torch.linspace(0, len(x) - 1, IMAGES).long()]
            found = " | ".join(f"{moved(model, x, Threat('linf', radius)):.3f}" for radius in RADII)
            print(f"| {net} | {trained} | {name} | {found} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
