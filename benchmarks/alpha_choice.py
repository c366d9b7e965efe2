"""How often `merge.alpha: auto` leaves 0 by chance, and how often it finds a true gain: planted answers, no network.

    python -m benchmarks.alpha_choice                    # half a minute; one line of JSON for each setting

Four alphas change a tenth of the answers by chance, clean and under attack. `gain` is a true one in clean accuracy, at
alpha 0.5; `loss` a true one in robust accuracy, at all four. `moves`: the share of seeds in which `auto` leaves 0.
`higher`: the share in which some alpha has both accuracies higher, which without a test would be a move as well.
"""

from __future__ import annotations

import json

import numpy as np

from autolora.common.command_line import Command
from autolora.training.dial import Point, choose

ALPHAS = (0.25, 0.5, 0.75, 1.0)
CHANGED = 0.1  # of the answers


def main() -> None:
    parser = Command(__doc__, reads="nothing", writes="one line of JSON for each setting, on stdout")
    parser.add_argument("--seeds", type=int, default=500)
    seeds = parser.parse_args().seeds
    settings = [(n, *planted) for n in (148, 500, 2000) for planted in ((0.0, 0.0), (0.05, 0.0), (0.0, 0.02))]
    for n, gain, loss in settings:
        print(json.dumps({"n": n, "gain": gain, "loss": loss, "seeds": seeds} | moves(n, gain, loss, seeds)))


def moves(n: int, gain: float, loss: float, seeds: int) -> dict[str, float]:
    drawn = [points(np.random.default_rng(seed), n, gain, loss) for seed in range(seeds)]
    left = [choose(each)[0].alpha > 0 for each in drawn]
    higher = [any(np.greater(p.accuracies, each[0].accuracies).all() for p in each) for each in drawn]
    return {"moves": sum(left) / seeds, "higher": sum(higher) / seeds}


def points(rng: np.random.Generator, n: int, gain: float, loss: float) -> list[Point]:
    clean, robust = rng.random(n) < 0.9, rng.random(n) < 0.8
    found = [Point("branch", 0.0, clean, clean & robust)]
    for alpha in ALPHAS:
        right = changed(rng, clean, 0.9)
        if alpha == 0.5:
            right |= rng.random(n) < gain / 0.1  # of the tenth that is wrong
        stands = changed(rng, robust, 0.8) & (rng.random(n) >= loss / 0.72)  # of the 72 % that stand
        found.append(Point("branch", alpha, right, right & stands))
    return found


def changed(rng: np.random.Generator, answers: np.ndarray, share: float) -> np.ndarray:
    """A tenth of the answers drawn anew, as often right as before."""
    return np.where(rng.random(len(answers)) < CHANGED, rng.random(len(answers)) < share, answers)


if __name__ == "__main__":
    main()
