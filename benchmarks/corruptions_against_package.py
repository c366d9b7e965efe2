"""Our corruptions against the package `imagecorruptions-imaug`, image by image, with the same random draws.

    uv run --no-sync --with imagecorruptions-imaug python -m benchmarks.corruptions_against_package

The package brings OpenCV, scikit-image and numba, 500 MB that no test needs; so it is no dependency, and the tests have
an oracle of their own (tests/oracle/corruptions.py). It knows ImageNet-C's strengths alone, so images are of 48 pixels
or more here. Its `frost` has photographs, and its `elastic_transform` leaves out the affine part: both are left out.
One line of JSON for each corruption: bytes that differ by more than 1, and the largest difference, at all severities.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from autolora.common.command_line import Command
from autolora.corruptions.corrupt import CORRUPTIONS, SEVERITIES, corrupted
from autolora.corruptions.draws import Draws

GLASS = "_shuffle_pixels_njit_glass_blur"
LEFT_OUT = ("frost", "elastic_transform")


class Replay:
    """numpy.random as the package calls it, with the draws that ours makes."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def normal(self, size: tuple[int, ...], scale: float, loc: float = 0.0) -> np.ndarray:
        return loc + scale * _channels_last(self.draws.normal(*size[2:], *size[:2]))

    def uniform(self, low: float, high: float, size: tuple[int, ...] = ()) -> Any:
        return self.draws.uniform(low, high, *size)[0].numpy()

    def poisson(self, rates: np.ndarray) -> np.ndarray:
        return _channels_last(self.draws.poisson(torch.from_numpy(rates).permute(2, 0, 1)[None]))

    def salt_and_pepper(self, x: np.ndarray, _mode: str, _seed: None, amount: float) -> np.ndarray:
        hit, white = (_channels_last(self.draws.uniform(0, 1, 3, *x.shape[:2])) for _ in range(2))
        return np.where(hit < amount, white < 0.5, x)

    def shuffled(self, loop: Any, h: int, w: int, *rest: Any) -> np.ndarray:
        """The package's loop, outside numba."""
        x, c, _seed = rest
        offsets = iter(self.draws.whole(-c[1], c[1], c[2], h - 2 * c[1], w - 2 * c[1], 2)[0].reshape(-1, 2).numpy())
        with mock.patch.multiple(np.random, seed=lambda _: None, randint=lambda *_, size: next(offsets)):
            return loop.py_func(h, w, x, c)


def _channels_last(drawn: Tensor) -> np.ndarray:
    return drawn[0].permute(1, 2, 0).numpy() if drawn.dim() == 4 else drawn[0].numpy()


def theirs(image: Tensor, name: str, severity: int, draws: Draws) -> Tensor:
    import imagecorruptions
    from imagecorruptions import corruptions

    replay = Replay(draws)
    with (
        mock.patch.multiple(np.random, normal=replay.normal, uniform=replay.uniform, poisson=replay.poisson),
        mock.patch.object(corruptions.sk.util, "random_noise", replay.salt_and_pepper),
        mock.patch.object(corruptions, "clipped_zoom", partial(cut, corruptions.clipped_zoom)),
        mock.patch.object(corruptions, GLASS, partial(replay.shuffled, getattr(corruptions, GLASS))),
    ):
        pixels = image.permute(1, 2, 0).contiguous().numpy()
        found = imagecorruptions.corrupt(pixels, severity=severity, corruption_name=name)
    return torch.from_numpy(np.array(found)).permute(2, 0, 1)


def cut(zoom: Any, image: np.ndarray, factor: float) -> np.ndarray:
    """To the image's size, around the middle and at once, as the original does; the package cuts after snow's blur."""
    large, (h, w) = zoom(image, factor), image.shape[:2]
    top, left = (large.shape[0] - h) // 2, (large.shape[1] - w) // 2
    return large[top : top + h, left : left + w]


def main() -> None:
    parser = Command(__doc__, reads="nothing", writes="one line of JSON for each corruption, on stdout")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(arguments.images, 3, 9, 9, generator=draw)
    smooth = torch.nn.functional.interpolate(coarse, size=arguments.size, mode="bicubic").clamp(0, 1)
    x = (smooth * 255).to(torch.uint8)
    ids = [str(i) for i in range(len(x))]
    for name in [n for n in CORRUPTIONS if n not in LEFT_OUT]:
        apart = [
            (ours.int() - theirs(image, name, s, Draws(0, f"{name}/{s}", [one])).int()).abs()
            for s in SEVERITIES
            for image, one, ours in zip(x, ids, corrupted(x, ids, name, s))
        ]
        found = torch.stack(apart)
        far = {"bytes": found.numel(), "differ by more than 1": int((found > 1).sum()), "most": int(found.max())}
        print(json.dumps({"corruption": name} | far), flush=True)


if __name__ == "__main__":
    main()
