"""How sure a share is, and whether two models differ: Wilson's interval, McNemar's exact paired test, and Holm's
correction where several are tried; and the mean over a curve.

Plain Python on counts, so that every floor can use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import comb, sqrt

Z95 = 1.959963984540054


def wilson(successes: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927): never outside [0, 1], sensible at 0 and at 1."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p: are the images that only one of two models gets right split evenly between the two?"""
    n, fewer = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)


def mean_over_radius(curve: Sequence[tuple[float, float]], most: float) -> float:
    """The mean accuracy over radii from 0 to `most`, each as likely: of (radius, accuracy), joined by straight lines.

    Beyond its last point the curve stays where it was.
    """
    inside = sorted((radius, accuracy) for radius, accuracy in curve if radius <= most * (1 + 1e-6))
    points = [*inside, (max(most, inside[-1][0]), inside[-1][1])]
    return sum((b - a) * (low + high) / 2 for (a, low), (b, high) in pairwise(points)) / points[-1][0]


def holm(values: Sequence[float]) -> list[float]:
    """p of several tests at once, adjusted (Holm, 1979): those below 0.05 hold no false one in 95 of 100 cases."""
    adjusted, largest = [1.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        adjusted[i] = largest
    return adjusted
