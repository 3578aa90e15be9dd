"""Metrics: values worked out by hand, edge cases, and what happens to missing values."""

import numpy as np
import pytest

from reward_model.evaluation import metrics

NAN = float("nan")


def test_srcc_of_a_monotone_curve_is_one_and_of_its_mirror_minus_one():
    x = np.array([0.1, 0.5, 0.2, 0.9])
    assert metrics.srcc(x, x**3) == pytest.approx(1.0)
    assert metrics.srcc(x, -x) == pytest.approx(-1.0)


def test_ties_share_their_mean_rank():
    assert metrics.ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_srcc_with_a_tie_equals_pearson_of_the_mean_ranks():
    # Ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): covariance 4.5, variances 4.5 and 5.
    assert metrics.srcc([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_krcc_counts_concordant_minus_discordant_pairs():
    # Of 6 pairs one is discordant: (5 - 1) / 6.
    assert metrics.krcc([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)


def test_krcc_with_a_tie_is_tau_b():
    # 5 concordant, 1 tied in x: 5 / sqrt(5 * 6).
    assert metrics.krcc([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / np.sqrt(30))


@pytest.mark.parametrize("measure", [metrics.srcc, metrics.krcc, metrics.plcc, metrics.plcc_logistic])
def test_correlation_of_a_constant_is_undefined(measure):
    assert np.isnan(measure([0.3] * 5, [1, 2, 3, 4, 5]))


@pytest.mark.parametrize("measure", [metrics.srcc, metrics.krcc, metrics.plcc, metrics.plcc_logistic, metrics.rmse])
def test_missing_values_are_never_dropped_in_silence(measure):
    assert np.isnan(measure([1, 2, NAN, 4, 5], [1, 2, 3, 4, 5]))


def test_drop_missing_says_how_many_rows_went():
    complete = metrics.drop_missing([1, NAN, 3, np.inf], [1, 2, NAN, 4])
    assert complete.prediction.tolist() == [1.0]
    assert complete.keep.tolist() == [True, False, False, False]
    assert complete.num_missing == 3


def test_arrays_of_different_length_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        metrics.plcc([1, 2], [1, 2, 3])


def test_rmse_is_in_the_unit_of_the_target():
    assert metrics.rmse([1.0, 2.0], [4.0, 6.0]) == pytest.approx(np.sqrt(12.5))


def test_logistic_fit_recovers_a_known_curve():
    x = np.linspace(-3, 3, 40)
    y = (5.0 - 1.0) / (1 + np.exp(-(x - 0.4) / 0.7)) + 1.0
    fit = metrics.fit_logistic(x, y)
    assert (fit.high, fit.low, fit.centre, fit.width) == pytest.approx((5.0, 1.0, 0.4, 0.7), abs=1e-4)
    assert metrics.plcc_logistic(x, y) == pytest.approx(1.0)
    assert metrics.plcc(x, y) < 0.99


def test_logistic_fit_follows_a_falling_relation_and_says_that_it_falls():
    x = np.linspace(0, 1, 30)
    assert metrics.plcc_logistic(x, np.tanh(3 - 6 * x)) < -0.999


def test_logistic_fit_refuses_missing_values():
    with pytest.raises(ValueError, match="drop_missing"):
        metrics.fit_logistic([1, 2, 3, NAN], [1, 2, 3, 4])


def test_pair_accuracy_drops_labelled_ties_and_counts_zero_and_missing_margins_as_wrong():
    margin = [0.2, -0.1, 0.0, NAN, 0.3]
    preference = [1.0, 0.0, 1.0, 1.0, 0.5]
    assert metrics.pair_accuracy(margin, preference) == pytest.approx(2 / 4)


def test_pair_accuracy_without_a_decided_pair_is_undefined():
    assert np.isnan(metrics.pair_accuracy([0.1], [0.5]))


def test_a_frozen_threshold_calls_small_margins_ties():
    margin = [0.2, -0.05, 0.0, NAN]
    preference = [1.0, 0.5, 0.5, 0.5]
    assert metrics.pair_accuracy_with_ties(margin, preference, threshold=0.1) == pytest.approx(3 / 4)
    assert metrics.pair_accuracy_with_ties(margin, preference, threshold=-1.0) == pytest.approx(1 / 4)


def test_oracle_threshold_cannot_part_pairs_of_equal_margin():
    # Reading the accuracy between the two equal margins would promise 1.0; a real threshold reaches 0.5 either way.
    found = metrics.oracle_threshold([0.5, 0.5], [0.5, 1.0])
    assert found == metrics.TieThreshold(-1.0, 0.5)


def test_oracle_threshold_is_the_best_of_all_frozen_ones():
    rng = np.random.default_rng(0)
    margin = rng.integers(-4, 5, size=60) / 4
    preference = rng.choice([0.0, 0.5, 1.0], size=60)
    candidates = [-1.0, *np.unique(np.abs(margin))]
    best = max(metrics.pair_accuracy_with_ties(margin, preference, threshold=t) for t in candidates)
    found = metrics.oracle_threshold(margin, preference)
    assert found.accuracy == pytest.approx(best)
    assert metrics.pair_accuracy_with_ties(margin, preference, threshold=found.threshold) == pytest.approx(best)


def test_pairs_within_groups_join_only_rows_of_one_group_above_the_gap():
    better, worse = metrics.pairs_within_groups([0.1, 0.5, 0.52, 0.9, NAN], ["a", "a", "a", "b", "b"], min_gap=0.05)
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == [(1, 0), (2, 0)]


def test_pairs_within_groups_never_join_equal_targets():
    better, _ = metrics.pairs_within_groups([0.5, 0.5], ["a", "a"], min_gap=0.0)
    assert len(better) == 0


def test_bootstrap_of_the_mean_matches_the_standard_error():
    values = np.random.default_rng(0).normal(1.0, 2.0, size=400)
    interval = metrics.bootstrap_interval(np.mean, values)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    # 10 %: Monte Carlo error of a quantile over 1,000 resamples.
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)


def test_bootstrap_draws_groups_whole():
    values = np.repeat([0.0, 1.0], 50)
    by_row = metrics.bootstrap_interval(np.mean, values)
    by_group = metrics.bootstrap_interval(np.mean, values, groups=np.repeat(["a", "b"], 50).tolist())
    assert by_row.high - by_row.low < 0.25
    assert (by_group.low, by_group.high, by_group.num_groups) == (0.0, 1.0, 2)


def test_bootstrap_is_paired_and_deterministic():
    x = np.random.default_rng(0).normal(size=30)
    first = metrics.bootstrap_interval(metrics.plcc, x, 2 * x, seed=3, num_resamples=50)
    assert first == metrics.bootstrap_interval(metrics.plcc, x, 2 * x, seed=3, num_resamples=50)
    assert (first.low, first.high) == pytest.approx((1.0, 1.0))


def test_bootstrap_counts_undefined_resamples():
    interval = metrics.bootstrap_interval(metrics.plcc, [1.0, 2.0], [1.0, 3.0], num_resamples=200)
    # Half of the resamples of two rows repeat one of them.
    assert 60 < interval.num_undefined < 140


def test_bootstrap_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="one length above 0"):
        metrics.bootstrap_interval(np.mean, [1.0, 2.0], groups=["a"])


@pytest.mark.parametrize("num", [2, 3, 4, 5, 6, 7, 20, 101])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_t_interval_equals_scipy(num, level):
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(num).normal(0.3, 1.0, num)
    interval = metrics.t_interval(values, level=level)
    expected = stats.t.interval(level, num - 1, loc=values.mean(), scale=stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-9)
    assert interval.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-8)
    assert (interval.mean, interval.num) == (pytest.approx(values.mean()), num)


def test_t_interval_of_three_seeds_by_hand():
    # mean 2, standard error 1 / sqrt(3), t(2) at 97.5 % = 4.302653
    interval = metrics.t_interval([1.0, 2.0, 3.0])
    assert interval.high - 2 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert interval.p_value == pytest.approx(1 - 2 * np.sqrt(3) / np.sqrt(2 + 12))  # A = t / sqrt(2 + t^2)


@pytest.mark.parametrize("values", [[0.3], [0.2, 0.2, 0.2], [0.0, 0.0], [0.1, NAN, 0.3], [0.1, np.inf]])
def test_runs_that_cannot_differ_have_no_interval(values):
    interval = metrics.t_interval(values)
    assert all(np.isnan(one) for one in (interval.low, interval.high, interval.p_value))


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([[1.0, 2.0]], 0.95), ([1.0, 2.0], 1.0), ([1.0, 2.0], 0.0)])
def test_t_interval_refuses_what_it_cannot_use(values, level):
    with pytest.raises(ValueError, match="level"):
        metrics.t_interval(values, level=level)


@pytest.mark.parametrize("num", [3, 6])
def test_t_interval_covers_95_in_100_experiments_where_the_bootstrap_does_not(num):
    rng, trials = np.random.default_rng(0), 4000
    runs = rng.normal(0.1, 0.05, (trials, num))
    covered = np.mean([one.low <= 0.1 <= one.high for one in map(metrics.t_interval, runs)])
    # Standard error of a share of 0.95 over 4000 trials: 0.0034.
    assert covered == pytest.approx(0.95, abs=0.012)
    means = np.sort(runs[:500, rng.integers(num, size=(1000, num))].mean(2), axis=1)  # [trials, resamples]
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    bootstrap = np.mean((low <= 0.1) & (high >= 0.1))
    assert bootstrap < (0.80 if num == 3 else 0.91)


def test_bootstrap_interval_over_three_seeds_covers_about_72_in_100_experiments():
    runs = np.random.default_rng(1).normal(0.1, 0.05, (400, 3))
    drawn = [metrics.bootstrap_interval(np.mean, one, num_resamples=400) for one in runs]
    # Standard error of a share of 0.72 over 400 trials: 0.022.
    assert np.mean([one.low <= 0.1 <= one.high for one in drawn]) == pytest.approx(0.72, abs=0.08)


def test_holm_by_hand():
    # sorted .01 .03 .04: times 3, 2, 1 are .03 .06 .04; never below the one before
    assert metrics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert metrics.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert metrics.holm([0.01, NAN]) == pytest.approx([0.02, 1.0])
    assert metrics.holm([]).tolist() == []


def test_holm_errs_in_five_of_a_hundred_families_where_plain_tests_err_in_most():
    rng = np.random.default_rng(2)
    families = [[metrics.t_interval(runs).p_value for runs in rng.normal(0, 1, (17, 3))] for _ in range(400)]
    assert np.mean([metrics.holm(one).min() < 0.05 for one in families]) < 0.08
    assert np.mean([min(one) < 0.05 for one in families]) > 0.4


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_correlation_after_the_fit_keeps_the_sign_of_a_judge_that_is_the_wrong_way_round(noise):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, size=80)
    y = 20 + 60 / (1 + np.exp(-(x - 0.5) / 0.1)) + noise * rng.normal(size=80)
    right = metrics.plcc_logistic(x, y)
    assert right > 0.98
    assert metrics.plcc_logistic(-x, y) == pytest.approx(-right, abs=1e-6)
    assert metrics.plcc_logistic(x, -y) == pytest.approx(-right, abs=1e-4)
