"""MixedNUTS (Bai et al., 2024): how a robust network is mixed with its natural twin, found on the validation part.

    margin   p_y - max_{k != y} p_k,  p = softmax(M(h)), of images that h reads rightly under attack
    q        the margin that all but the cheapest of them have;  a = 1 / (1 + q):  the twin cannot change these answers
    M        of all that are tried, the one that leaves fewest images which h reads wrongly and too surely: the answer
             is q or more ahead of the label (published: of the next answer, which a twin may not mean)

The published search used the test part. The mixture itself is backbones/mixture.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autolora.attacks.pgd import pgd
from autolora.backbones.classifier import Classifier, mix, robust_part, with_view
from autolora.backbones.frozen import frozen
from autolora.backbones.mixture import LogitMap
from autolora.data.batches import to_pixels
from autolora.threat import Threat
from autolora.training.dial import STEPS, judge

LEAST = 100  # validation images
MANY = 500  # that stand the attack: from here all of M is searched, and a few of them may be given up
MAY_LOSE = 0.005  # robust accuracy
SURROGATE = 0.9425  # share of the images that stand, whose answers keep in the surrogate's unmapped mixing
HIGHEST, SAFE = 0.99, 1e-4  # of q, and a share of it: float32 cannot tell nearly equal answers apart
SPREAD = 60.0  # of M(h)'s values: beyond, float32 has no probability for the last class, and cross-entropy no gradient

# wider than the published grid, whose best lay on its edge
SCALES, SHIFTS, POWERS = np.geomspace(0.05, 20, 10), np.linspace(-1.5, 0.5, 5), np.linspace(1, 6, 6)

Tick = Callable[[int], object]


class Logits(NamedTuple):
    """Of the robust network, on the validation part."""

    clean: Tensor  # [n,classes]
    attacked: Tensor
    y: Tensor

    @property
    def stands(self) -> Tensor:
        return (self.clean.argmax(1) == self.y) & (self.attacked.argmax(1) == self.y)


def mixture(
    robust: Classifier, natural: Classifier, images: Tensor, labels: Tensor, threat: Threat
) -> tuple[Classifier | None, str]:
    """The two as one, and how; or None, and why not."""
    mapping, why = search(logits_of(robust, images, labels, threat))
    return (None if mapping is None else mix(robust, natural, mapping)), why


def logits_of(model: nn.Module, images: Tensor, labels: Tensor, threat: Threat, batch: int = 256) -> Logits:
    """Attacked as the dial's points are."""
    clean, attacked = [], []
    with frozen(model):
        for pixels, y in zip(images.split(batch), labels.split(batch)):
            x = to_pixels(pixels)
            points = pgd(model, x, y, threat, STEPS, random_start=False)
            with torch.no_grad():
                clean.append(model(x))
                attacked.append(model(points))
    return Logits(torch.cat(clean).double().cpu(), torch.cat(attacked).double().cpu(), labels.cpu())


def search(found: Logits) -> tuple[LogitMap | None, str]:
    n, classes = found.clean.shape
    standing = int(found.stands.sum())
    if classes == 2:
        return None, "there are two classes, and a layer norm of two logits tells no sure answer from an unsure one"
    if n < LEAST:
        return None, f"{n} validation images are fewer than {LEAST}"
    if not standing:
        return None, "no validation image stands the attack"
    whole = standing >= MANY
    given_up = MAY_LOSE * n / standing if whole else 0.0
    tried = [(stubborn(found, m, given_up), m) for m in candidates(whole=whole) if fits(found, m)]
    (wrong, minus_q), best = min(tried, key=lambda pair: pair[0])
    plain = least_margin(found.attacked[found.stands], 1 - SURROGATE)
    mapping = replace(best, alpha=1 / (1 - minus_q), surrogate_alpha=1 / (1 + plain))
    said = f"of {int((found.clean.argmax(1) != found.y).sum())} images read wrongly {wrong} are too sure to be mended"
    return mapping, f"{said}; the robust network's share is {mapping.alpha:.4g}"


def candidates(*, whole: bool) -> Iterator[LogitMap]:
    for scale in SCALES.tolist():
        yield LogitMap(scale)
        if whole:
            yield from (LogitMap(scale, p, c) for p in POWERS.tolist() for c in SHIFTS.tolist())


def fits(found: Logits, mapping: LogitMap) -> bool:
    """GELU is not monotone: with few classes a shift may turn answers around."""
    pairs = [(z, mapping(z)) for z in (found.clean, found.attacked)]
    same = all(torch.equal(m.argmax(1), z.argmax(1)) for z, m in pairs)
    return same and all(float((m.amax(1) - m.amin(1)).max()) <= SPREAD for _, m in pairs)


def stubborn(found: Logits, mapping: LogitMap, given_up: float) -> tuple[int, float]:
    """How many clean images are read wrongly, too surely for a twin that knows; and -q: of equals the larger wins."""
    q = least_margin(mapping(found.attacked[found.stands]), given_up)
    p, y = mapping(found.clean).softmax(1), found.y
    behind = p.amax(1) - p.gather(1, y[:, None])[:, 0]
    return int(((found.clean.argmax(1) != y) & (behind >= q)).sum()), -q


def margins(z: Tensor) -> Tensor:
    """Of the answer over the next one, in probability: where the answer is right, that of the label."""
    top = z.softmax(1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def least_margin(z: Tensor, given_up: float) -> float:
    """q: at most this share of the answers has a smaller one."""
    ordered = margins(z).sort().values
    return min(float(ordered[int(given_up * len(ordered))]), HIGHEST) * (1 - SAFE)


def judged(
    mixed: Classifier, images: Tensor, labels: Tensor, threat: Threat, *, on_batch: Tick = lambda n: None
) -> tuple[np.ndarray, np.ndarray]:
    """As `dial.judge`, three ways: by the surrogate's gradient, by its own, and from the robust network."""
    clean, robust = judge(with_view(mixed, "surrogate"), images, labels, threat, on_batch=on_batch)
    _, own = judge(mixed, images, labels, threat)
    return clean, robust & own & clean & _stands_transfer(mixed, images, labels, threat)


def _stands_transfer(mixed: Classifier, images: Tensor, labels: Tensor, threat: Threat, batch: int = 256) -> np.ndarray:
    alone, right = robust_part(mixed), []
    with frozen(mixed):
        for pixels, y in zip(images.split(batch), labels.split(batch)):
            points = pgd(alone, to_pixels(pixels), y, threat, STEPS, random_start=False)
            with torch.no_grad():
                right.append(mixed(points).argmax(1) == y)
    return torch.cat(right).cpu().numpy()
