"""Agreement between predicted and true quality: rank and linear correlation, pair accuracy, intervals over cases and seeds.

Everything is plain numpy on one-dimensional arrays of equal length N. A missing value (NaN) is never dropped in silence:
the correlations return NaN when one is present, and `drop_missing` removes such cases and counts them. An
undefined value, such as the correlation of a constant, is NaN too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Complete:
    """Cases in which both arrays have a value, and the number of the others."""

    prediction: FloatArray
    target: FloatArray
    keep: NDArray[np.bool_]
    num_missing: int


@dataclass(frozen=True)
class LogisticFit:
    """Four-parameter logistic (high - low) / (1 + exp(-(x - centre) / width)) + low."""

    high: float
    low: float
    centre: float
    width: float

    def __call__(self, prediction: ArrayLike) -> FloatArray:
        """Map predictions onto the scale of the target."""
        return _logistic(np.asarray(prediction, np.float64), self.high, self.low, self.centre, self.width)


@dataclass(frozen=True)
class TieThreshold:
    """A threshold on |margin| below or at which a pair is called a tie (negative: never), and its accuracy."""

    threshold: float
    accuracy: float


@dataclass(frozen=True)
class Interval:
    """A statistic with its percentile bootstrap interval over `num_groups` resampled units.

    `num_undefined` counts the resamples whose statistic was NaN and which the bounds leave out.
    """

    value: float
    low: float
    high: float
    num_groups: int
    num_undefined: int


@dataclass(frozen=True)
class SeedInterval:
    """Mean over `num` runs with Student's t interval, and the two-sided p value of a mean of 0.

    Bounds and p value are NaN where the runs cannot say how far runs differ.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num: int


def drop_missing(prediction: ArrayLike, target: ArrayLike) -> Complete:
    """Keep the cases in which both arrays are finite.

    Args:
        prediction: [N], any unit.
        target: [N], any unit.

    Returns:
        The kept cases, the mask that chose them and the number of dropped cases.
    """
    x, y = _pair(prediction, target)
    keep = np.isfinite(x) & np.isfinite(y)
    return Complete(x[keep], y[keep], keep, int((~keep).sum()))


def ranks(values: ArrayLike) -> FloatArray:
    """Rank from 1, ties sharing the mean of their ranks; NaN everywhere if any value is NaN."""
    array = np.asarray(values, np.float64)
    if np.isnan(array).any():
        return np.full(array.shape, np.nan)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def plcc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Pearson's linear correlation of the raw predictions; NaN if either side is constant or has a NaN.

    Args:
        prediction: [N], any unit.
        target: [N], any unit.

    Returns:
        Correlation in [-1, 1].
    """
    x, y = _pair(prediction, target)
    if len(x) < 2:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    # Rounding leaves about 1e-16 of a constant's magnitude, which must not pass for variation.
    constant = scale == 0 or min(np.ptp(x), np.ptp(y)) == 0
    return float("nan") if constant else float(np.clip(x @ y / scale, -1.0, 1.0))


def srcc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Spearman's rank correlation, ties sharing mean ranks; NaN if either side is constant or has a NaN.

    Args:
        prediction: [N], any unit.
        target: [N], any unit.

    Returns:
        Correlation in [-1, 1].
    """
    x, y = _pair(prediction, target)
    return plcc(ranks(x), ranks(y))


def krcc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Kendall's tau-b; NaN if either side is constant or has a NaN.

    Args:
        prediction: [N], any unit.
        target: [N], any unit.

    Returns:
        Correlation in [-1, 1].
    """
    x, y = _pair(prediction, target)
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    agreement = untied_x = untied_y = 0.0
    # One case at a time, so that memory stays linear in N.
    for i in range(len(x) - 1):
        sign_x, sign_y = np.sign(x[i + 1 :] - x[i]), np.sign(y[i + 1 :] - y[i])
        agreement += sign_x @ sign_y
        untied_x += np.abs(sign_x).sum()
        untied_y += np.abs(sign_y).sum()
    scale = np.sqrt(untied_x * untied_y)
    return float("nan") if scale == 0 else float(agreement / scale)


def rmse(prediction: ArrayLike, target: ArrayLike) -> float:
    """Root mean square error in the unit of the target; NaN if a value is NaN or there is none."""
    x, y = _pair(prediction, target)
    return float(np.sqrt(np.mean((x - y) ** 2))) if len(x) else float("nan")


def fit_logistic(prediction: ArrayLike, target: ArrayLike, *, num_steps: int = 200) -> LogisticFit:
    """Fit the four-parameter logistic of VQEG by Levenberg-Marquardt.

    Args:
        prediction: [N], any unit, finite.
        target: [N], any unit, finite.
        num_steps: most iterations; the fit stops earlier once the error no longer falls.

    Returns:
        The fitted curve.

    Raises:
        ValueError: if a value is missing or there are fewer rows than parameters.

    Source: VQEG FR-TV Phase II, section 2.4; start [max y, min y, mean x, std x / 4].
    """
    x, y = _pair(prediction, target)
    if len(x) < 4 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"fit_logistic needs at least 4 finite rows, got {len(x)}; call drop_missing first")
    beta = np.array([y.max(), y.min(), x.mean(), max(float(x.std()) / 4, 1e-12)])
    residual = y - _logistic(x, *beta)
    damping = 1e-3
    for _ in range(num_steps):
        jacobian = _logistic_jacobian(x, *beta)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ residual
        damped = normal + damping * np.diag(np.diag(normal) + 1e-12)
        candidate = beta + np.linalg.lstsq(damped, gradient, rcond=None)[0]
        new_residual = y - _logistic(x, *candidate)
        if candidate[3] > 0 and new_residual @ new_residual < residual @ residual:
            gain = residual @ residual - new_residual @ new_residual
            beta, residual, damping = candidate, new_residual, damping / 3
            if gain <= 1e-12 * (residual @ residual):
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return LogisticFit(*(float(value) for value in beta))


def plcc_logistic(prediction: ArrayLike, target: ArrayLike) -> float:
    """Pearson's correlation after the four-parameter logistic fit; NaN where the raw one is.

    The sign is that of the fitted curve's slope: a curve that falls maps predictions that are the wrong way round onto the
    target, and must not earn them a positive correlation.
    """
    raw = plcc(prediction, target)
    if np.isnan(raw) or len(np.asarray(target)) < 4:
        return float("nan")
    # the fit starts from a rising curve, so predictions that fall are turned round first
    direction = -1.0 if raw < 0 else 1.0
    turned = direction * np.asarray(prediction, np.float64)
    curve = fit_logistic(turned, target)
    slope = -direction if curve.high < curve.low else direction
    return slope * plcc(curve(turned), target)


def pair_accuracy(margin: ArrayLike, preference: ArrayLike) -> float:
    """Share of decided pairs whose winner the margin names; labelled ties are left out.

    A margin of exactly 0 counts as wrong, and so does a missing one: no answer is not a right answer.

    Args:
        margin: [N], score of the first minus score of the second, any unit.
        preference: [N], P(first is better) in {0, 0.5, 1}.

    Returns:
        Accuracy in [0, 1]; NaN without a decided pair.
    """
    d, label = _pair(margin, preference)
    decided = label != 0.5
    if not decided.any():
        return float("nan")
    return float(np.mean(np.sign(d[decided]) == np.sign(label[decided] - 0.5)))


def pair_accuracy_with_ties(margin: ArrayLike, preference: ArrayLike, *, threshold: float) -> float:
    """Share of all pairs called rightly as first, second or tie, with a threshold frozen beforehand.

    Args:
        margin: [N], score of the first minus score of the second, any unit; a missing one is wrong.
        preference: [N], P(first is better) in {0, 0.5, 1}.
        threshold: |margin| at or below it is a tie, in the unit of the margin; negative: nothing is.

    Returns:
        Accuracy in [0, 1]; NaN without pairs.
    """
    d, label = _pair(margin, preference)
    called = np.where(np.abs(d) <= threshold, 0.0, np.sign(d))
    called[(threshold < 0) & (d == 0)] = np.nan
    return float(np.mean(called == np.sign(label - 0.5))) if len(d) else float("nan")


def oracle_threshold(margin: ArrayLike, preference: ArrayLike) -> TieThreshold:
    """Tie threshold with the best accuracy on these very labels: an upper bound, or a value to freeze elsewhere.

    Pairs of equal |margin| become ties together, since no threshold can part them.

    Args:
        margin: [N], score of the first minus score of the second, any unit.
        preference: [N], P(first is better) in {0, 0.5, 1}.

    Returns:
        The smallest best threshold (-1 for "no ties at all") and its accuracy.

    Source: Deutsch, Foster and Freitag 2023, "Ties Matter", section 4.
    """
    d, label = _pair(margin, preference)
    if not len(d):
        return TieThreshold(-1.0, float("nan"))
    truth = np.sign(label - 0.5)
    size = np.abs(d)
    gain = (truth == 0).astype(np.float64) - ((np.sign(d) == truth) & (d != 0))
    present = ~np.isnan(size)
    candidates, group = np.unique(size[present], return_inverse=True)
    gains = np.cumsum(np.bincount(group, weights=gain[present], minlength=len(candidates)))
    without_ties = float(((np.sign(d) == truth) & (d != 0)).sum())
    if not len(candidates) or gains.max() <= 0:
        return TieThreshold(-1.0, without_ties / len(d))
    best = int(gains.argmax())
    return TieThreshold(float(candidates[best]), (without_ties + float(gains[best])) / len(d))


def pairs_within_groups(
    target: ArrayLike, groups: Sequence[object], *, min_gap: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index all pairs of one group (for instance one prompt) whose targets differ by at least `min_gap`.

    Args:
        target: [N], true quality; a case with NaN joins no pair.
        groups: N hashable group names.
        min_gap: smallest difference in the target's unit.

    Returns:
        Two index arrays [P]: the first has the higher target.
    """
    y = np.asarray(target, np.float64)
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    better, worse = [], []
    for rows in members.values():
        own = np.asarray(rows, np.intp)
        i, j = np.nonzero(y[own][:, None] - y[own][None, :] >= max(min_gap, np.finfo(np.float64).tiny))
        better.append(own[i])
        worse.append(own[j])
    empty = [np.empty(0, np.intp)]
    return np.concatenate(better or empty), np.concatenate(worse or empty)


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    groups: Sequence[object] | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic, resampling whole groups of cases with replacement.

    Args:
        statistic: takes as many arrays as there are samples and returns a number, for instance `np.mean` or `srcc`.
        *samples: arrays with the same first length N; one resample draws the same rows of each (paired).
        groups: N hashable names of the units that are drawn together (prompts); default: each row by itself.
        num_resamples: how many resamples; more steadies the bounds at proportional cost.
        level: probability mass between the bounds, in (0, 1).
        seed: of the resampling, which is deterministic.

    Returns:
        Value on the sample as given, and the bounds; the bounds are NaN if most resamples are undefined.

    Raises:
        ValueError: if lengths differ, there are no rows, or a setting is out of range.
    """
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    lengths = {len(array) for array in arrays} | ({len(groups)} if groups is not None else set())
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"samples and groups must share one length above 0, got {sorted(lengths)}")
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level must be in (0, 1) and num_resamples >= 1, got {level} and {num_resamples}")
    num_rows = lengths.pop()
    members: dict[object, list[int]] = {}
    for index, group in enumerate(range(num_rows) if groups is None else groups):
        members.setdefault(group, []).append(index)
    units = [np.asarray(rows, np.intp) for rows in members.values()]
    rng = np.random.default_rng(seed)
    values = np.empty(num_resamples)
    for draw in range(num_resamples):
        rows = np.concatenate([units[unit] for unit in rng.integers(len(units), size=len(units))])
        values[draw] = statistic(*(array[rows] for array in arrays))
    defined = values[~np.isnan(values)]
    low = high = float("nan")
    if 2 * len(defined) > num_resamples:
        low, high = (float(bound) for bound in np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(float(statistic(*arrays)), low, high, len(units), num_resamples - len(defined))


def t_interval(values: ArrayLike, *, level: float = 0.95) -> SeedInterval:
    """Student's t interval of the mean over independent runs, for instance one value per seed.

    A percentile bootstrap over 3 runs covers the true mean in about 72 % of experiments instead of 95 %; this interval
    covers it in 95 % where the runs' values are normal.

    Args:
        values: [N], one per run, any unit.
        level: probability mass between the bounds, in (0, 1).

    Returns:
        Mean, bounds and p value; the last three are NaN for fewer than two runs, runs that are all exactly equal (seeds
        that changed nothing are one run) and a value that is missing.

    Raises:
        ValueError: if there are no values, they have several axes, or the level is out of range.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not 0 < level < 1:
        raise ValueError(f"expected values [N], N >= 1, and a level in (0, 1), got shape {x.shape} and {level}")
    mean = float(x.mean())
    if len(x) < 2 or not np.isfinite(x).all() or np.ptp(x) == 0:
        return SeedInterval(mean, float("nan"), float("nan"), float("nan"), len(x))
    error = float(x.std(ddof=1)) / math.sqrt(len(x))
    half = _t_quantile(level, len(x) - 1) * error
    return SeedInterval(mean, mean - half, mean + half, 1 - _t_mass(abs(mean) / error, len(x) - 1), len(x))


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's correction of p values for their number: rejecting those below alpha errs once or more with chance <= alpha.

    Args:
        p_values: [N]; a missing one counts as 1.

    Returns:
        [N] corrected values in [0, 1].

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.nan_to_num(np.asarray(p_values, np.float64), nan=1.0)
    order = np.argsort(p, kind="stable")
    corrected = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected[np.argsort(order, kind="stable")]


def _t_mass(t: float, freedom: int) -> float:
    """Return Student's probability of [-t, t]; Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    square, term, total = math.cos(angle) ** 2, 1.0, 0.0
    for step in range(freedom // 2):
        total += term
        term *= square * ((2 * step + 2) / (2 * step + 3) if freedom % 2 else (2 * step + 1) / (2 * step + 2))
    if freedom % 2:
        return min(2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total), 1.0)
    return min(math.sin(angle) * total, 1.0)


def _t_quantile(mass: float, freedom: int) -> float:
    """Return the t whose interval [-t, t] holds the mass, by bisection."""
    low, high = 0.0, 1.0
    while _t_mass(high, freedom) < mass:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_mass(middle, freedom) < mass else (low, middle)
    return high


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"expected two one-dimensional arrays of equal length, got shapes {x.shape} and {y.shape}")
    return x, y


def _logistic(x: FloatArray, high: float, low: float, centre: float, width: float) -> FloatArray:
    # tanh form: the same curve as 1 / (1 + exp(-z)), without overflow.
    return (high - low) * (0.5 + 0.5 * np.tanh((x - centre) / (2 * width))) + low


def _logistic_jacobian(x: FloatArray, high: float, low: float, centre: float, width: float) -> FloatArray:
    gate = 0.5 + 0.5 * np.tanh((x - centre) / (2 * width))
    slope = (high - low) * gate * (1 - gate) / width
    return np.stack([gate, 1 - gate, -slope, -slope * (x - centre) / width], axis=1)  # [N, 4]
