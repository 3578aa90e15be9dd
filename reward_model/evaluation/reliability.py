"""Reliability curves of stated uncertainty: of a score's spread and of a preference's probability.

A curve groups the cases into bins by the stated value and compares it with the observed one. Its error is the mean gap,
weighted by the cases of each bin. Everything is plain numpy on arrays of equal length N; cases with a NaN are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reward_model.evaluation.metrics import srcc

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SpreadBin:
    """Cases with a stated spread in [low, high]: root mean square of spread and of error, and the mean absolute error."""

    num: int
    low: float
    high: float
    spread: float
    error: float
    absolute_error: float


@dataclass(frozen=True)
class SpreadCurve:
    """Reliability of a score's spread, in units of the score; NaN where there are no cases.

    `calibration_error` is the weighted mean of |spread - error| over the bins. `scale` times the spread has the size of
    the errors on average. `srcc` is the rank correlation of spreads and absolute errors.
    """

    num: int
    calibration_error: float
    scale: float
    srcc: float
    bins: tuple[SpreadBin, ...]


@dataclass(frozen=True)
class ChoiceBin:
    """Pairs with a stated probability in [low, high): its mean, and the share in which the first is better."""

    num: int
    low: float
    high: float
    probability: float
    share: float


@dataclass(frozen=True)
class ChoiceCurve:
    """Reliability of P(first is better); `coverage` is the share of pairs with a probability, NaN where undefined."""

    num: int
    coverage: float
    calibration_error: float
    accuracy: float
    bins: tuple[ChoiceBin, ...]


def spread_curve(spread: ArrayLike, error: ArrayLike, *, num_bins: int = 10) -> SpreadCurve:
    """Compare stated spreads with the actual errors.

    Args:
        spread: [N], stated standard deviations, >= 0.
        error: [N], score minus truth, in the same unit.
        num_bins: bins of equally many cases.

    Returns:
        The curve.

    Source: Levi et al., Evaluating and Calibrating Uncertainty Prediction in Regression Tasks (arXiv 1905.11659), whose
    expected error divides by the spread; this one does not, so that it has the score's unit.
    """
    s, e = _complete(spread, error)
    bins = []
    for cases in np.array_split(np.argsort(s, kind="stable"), num_bins):
        if len(cases):
            size = np.abs(e[cases])
            bins.append(
                SpreadBin(
                    num=len(cases),
                    low=float(s[cases].min()),
                    high=float(s[cases].max()),
                    spread=_root_mean_square(s[cases]),
                    error=_root_mean_square(e[cases]),
                    absolute_error=float(size.mean()),
                )
            )
    gap = sum(b.num * abs(b.spread - b.error) for b in bins) / len(s) if bins else float("nan")
    stated = _root_mean_square(s)
    scale = _root_mean_square(e) / stated if stated > 0 else float("nan")
    return SpreadCurve(len(s), gap, scale, srcc(s, np.abs(e)), tuple(bins))


def choice_curve(probability: ArrayLike, first_better: ArrayLike, *, num_bins: int = 10) -> ChoiceCurve:
    """Compare stated probabilities with the true preferences.

    Args:
        probability: [N], P(first is better) in [0, 1].
        first_better: [N], 1 or 0.
        num_bins: bins of equal width; empty ones are left out.

    Returns:
        The curve; a probability of exactly a half is half right.

    Source: Guo et al., On Calibration of Modern Neural Networks (ICML 2017), expected calibration error.
    """
    total = len(np.asarray(probability))
    p, truth = _complete(probability, first_better)
    place = np.minimum((p * num_bins).astype(int), num_bins - 1)
    bins = []
    for index in range(num_bins):
        cases = place == index
        if cases.any():
            bins.append(
                ChoiceBin(
                    num=int(cases.sum()),
                    low=index / num_bins,
                    high=(index + 1) / num_bins,
                    probability=float(p[cases].mean()),
                    share=float(truth[cases].mean()),
                )
            )
    if not bins:
        return ChoiceCurve(0, 0.0 if total else float("nan"), float("nan"), float("nan"), ())
    gap = sum(b.num * abs(b.probability - b.share) for b in bins) / len(p)
    right = np.where(p == 0.5, 0.5, (p > 0.5) == (truth > 0.5))
    return ChoiceCurve(len(p), len(p) / total, gap, float(right.mean()), tuple(bins))


def _complete(first: ArrayLike, second: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"expected two one-dimensional arrays of equal length, got shapes {x.shape} and {y.shape}")
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def _root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")
