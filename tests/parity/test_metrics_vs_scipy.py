"""Metrics against scipy, on values with and without ties."""

import numpy as np
import pytest

from reward_model.evaluation import metrics

scipy_stats = pytest.importorskip("scipy.stats", reason="scipy is a test-only reference")


@pytest.mark.parametrize("step", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_correlations_equal_scipy(seed, step):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    if step:
        x, y = np.round(x / step), np.round(y / step)
    assert metrics.plcc(x, y) == pytest.approx(scipy_stats.pearsonr(x, y).statistic, abs=1e-12)
    assert metrics.srcc(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).statistic, abs=1e-12)
    assert metrics.krcc(x, y) == pytest.approx(scipy_stats.kendalltau(x, y).statistic, abs=1e-12)
    np.testing.assert_array_equal(metrics.ranks(x), scipy_stats.rankdata(x))


@pytest.mark.parametrize("seed", range(4))
def test_logistic_fit_is_as_good_as_scipy_curve_fit(seed):
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, size=150)
    y = 20 + 60 / (1 + np.exp(-(x - 0.5) / 0.1)) + rng.normal(0, 5, size=150)

    def curve(values, high, low, centre, width):
        return (high - low) / (1 + np.exp(-(values - centre) / np.abs(width))) + low

    best, _ = curve_fit(curve, x, y, p0=[y.max(), y.min(), x.mean(), x.std() / 4], maxfev=20_000)
    ours = metrics.rmse(metrics.fit_logistic(x, y)(x), y)
    # Both stop at a tolerance on the error, so that the last digits differ.
    assert ours == pytest.approx(metrics.rmse(curve(x, *best), y), rel=1e-4)
    assert metrics.plcc_logistic(x, y) == pytest.approx(metrics.plcc(curve(x, *best), y), abs=1e-4)
