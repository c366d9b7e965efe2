"""Is a backbone robust already? How far an attacker moves its features, beside how far two images are apart.

    python -m benchmarks.features_moved PATH

PATH, networks and images are those of benchmarks.rate_rules.
"""

from __future__ import annotations

from pathlib import Path

import torch

from autolora.common.command_line import Command
from autolora.data.batches import to_pixels
from autolora.threat import Threat
from autolora.training.robust_already import IMAGES, features_moved
from benchmarks.rate_rules import NETS, SETS, backbone, parts

RADII = ("1/255", "2/255", "4/255", "8/255", "16/255")


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
            found = " | ".join(f"{features_moved(model, x, Threat('linf', radius)):.3f}" for radius in RADII)
            print(f"| {net} | {trained} | {name} | {found} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
