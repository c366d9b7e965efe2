"""Against scipy, which knows both by other routes."""

import numpy as np
import pytest
from scipy.stats import binomtest

from autolora.common.statistics import holm, mcnemar, mean_over_radius, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (63, 128), (499, 1000), (1, 3)])
def test_wilson(k: int, n: int) -> None:
    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 5), (1, 9), (30, 12), (700, 800)])
def test_mcnemar(a: int, b: int) -> None:
    expected = binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("values", [[], [0.04], [0.01, 0.04, 0.03, 0.005], [0.5, 0.6, 0.02], [0.02, 0.02, 1.0]])
def test_holm(values: list[float]) -> None:
    """Step down: the i-th smallest p is held against level / (m - i), and the first that fails ends it."""
    for level in (0.001, 0.015, 0.021, 0.05, 0.061, 0.3, 0.9):
        rejected: set[int] = set()
        for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[i] * (len(values) - rank) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(holm(values)) if p <= level} == rejected


def test_mean_over_radius() -> None:
    """As many small steps, by numpy; beyond `most` nothing counts, and a curve that ends before stays where it was."""
    curve = [(0.0, 1.0), (0.5, 0.8), (2.0, 0.1), (1.0, 0.5), (9.0, 0.0)]
    at = (np.arange(200_000) + 0.5) / 100_000
    known = sorted(curve)
    expected = np.interp(at, [r for r, _ in known], [a for _, a in known]).mean()
    assert mean_over_radius(curve, 2.0) == pytest.approx(expected, abs=1e-6)
    assert mean_over_radius([(0, 1.0), (1.0, 0.5)], 2.0) == pytest.approx((0.75 + 0.5) / 2)
    assert mean_over_radius([(0, 0.7)], 2.0) == pytest.approx(0.7)
