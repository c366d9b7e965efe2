"""Against scipy, which knows both by other routes."""

import pytest
from scipy.stats import binomtest

from autolora.statistics import mcnemar, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (63, 128), (499, 1000), (1, 3)])
def test_wilson(k: int, n: int) -> None:
    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (5, 5), (1, 9), (30, 12), (700, 800)])
def test_mcnemar(a: int, b: int) -> None:
    expected = binomtest(a, a + b).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
