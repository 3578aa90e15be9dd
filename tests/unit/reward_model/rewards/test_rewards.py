"""GRPO's rewards against values worked out by hand, and what each does to advantages."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from reward_model.records import Answer, Label
from reward_model.rewards import (
    REWARDS,
    Perturbed,
    RankingReward,
    RewardConfig,
    absolute,
    bell,
    build_rewards,
    choice,
    format_reward,
    from_trl,
    gated_length_bonus,
    length_bonus,
    relative,
    temporal_bonus,
    temporal_consistency,
    threshold,
    to_trl,
    weighted,
)
from reward_model.rewards.score import count_decimals


def said(score, *, dimension="overall", num_tokens=10, text="<think></think>"):
    """Return an answer that says one score, or for None one that cannot be read."""
    if score is None:
        return Answer("?", num_tokens, fault="not JSON")
    return Answer(text, num_tokens, scores={dimension: str(score)})


def mos(value, dimension="overall"):
    """Return the label of a clip that is rated on one dimension."""
    return Label(scores={dimension: value})


def reward_of(reward, scores, labels, groups=None, *, perturbed=None, lengths=None):
    """Return what a reward gives answers that say these scores; `perturbed` is (scores, labels, groups) of the others."""
    groups = torch.tensor(groups or [0] * len(scores))
    lengths = lengths or [10] * len(scores)
    answers = [said(score, num_tokens=length) for score, length in zip(scores, lengths, strict=True)]
    if perturbed is not None:
        other, other_labels, other_groups = perturbed
        perturbed = Perturbed([said(s) for s in other], [mos(x) for x in other_labels], torch.tensor(other_groups))
    return reward(answers, [mos(label) for label in labels], groups, perturbed=perturbed)


def values_of(*given, **rest):
    """Return the values only."""
    return reward_of(*given, **rest).values


def phi(x):
    """Return the standard normal distribution function."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_released_format_reads_the_blocks_and_corrected_format_the_fault():
    texts = ["<think>a\nb</think> <answer>?</answer>", "<think></think><answer></answer>.", "<answer>3</answer>", ""]
    answers = [Answer(text, 1, fault=fault) for text, fault in zip(texts, ["not JSON", "", "", ""], strict=True)]
    given = answers, [mos(3)] * 4, torch.zeros(4)
    assert format_reward(variant="released")(*given).values.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert format_reward()(*given).values.tolist() == [0.0, 1.0, 1.0, 1.0]


def test_absolute_error_is_measured_on_the_width_of_the_scale_and_stops_at_zero():
    # 1 - 2/4, 1 - 4/4, 1 - 1/4, an answer outside the scale, and one that cannot be read
    found = reward_of(absolute(), ["3", "1", "5.0", "9", None], [5, 5, 4, 1, 3])
    assert_close(found.values, torch.tensor([0.5, 0.0, 0.75, 0.0, 0.0]))
    assert found.breakdown["unparsed"].tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_relative_error_is_that_of_the_released_code_on_the_labels_own_scale():
    # scale 0 to 100: labels 10 and 90, scores 20 and 80, so errors of 100 % and 11 %
    on_five = [1 + 4 * number / 100 for number in (20, 80, 10, 90)]
    scores, labels = [str(number) for number in on_five[:2]], on_five[2:]
    assert_close(values_of(relative(scale=(0, 100)), scores, labels), torch.tensor([0.0, 1 - 10 / 90]))
    assert_close(values_of(relative(), scores, labels), torch.tensor([1 - 0.4 / 1.4, 1 - 0.4 / 4.6]))
    for scale in ((5, 1), (1,), (0, float("inf"))):
        with pytest.raises(ValueError, match="scale must be the lowest and the highest"):
            relative(scale=scale)


def test_relative_error_is_measured_on_the_label_and_stops_at_zero():
    # |2 - 4| / 4 = 0.5; |5 - 2| / 2 > 1; equal
    assert_close(values_of(relative(), ["2", "5", "4", None], [4, 2, 4, 4]), torch.tensor([0.5, 0.0, 1.0, 0.0]))


def test_the_threshold_is_0_35_and_exclusive():
    assert values_of(threshold(), ["3.34", "3.36", "2.66", "2.64", None], [3] * 5).tolist() == [1, 0, 1, 0, 0]
    assert values_of(threshold(tolerance=0.5), ["3.5", "3.49"], [3, 3]).tolist() == [0, 1]


def test_the_bell_has_the_published_values():
    # exp(-e^2 / 0.5) for errors .1, .25, .5, .75, 1, 1.5, 2
    found = values_of(bell(), ["3.10", "3.25", "3.50", "3.75", "4.00", "4.50", "5.00"], [3] * 7)
    assert_close(found, torch.tensor([0.980, 0.882, 0.607, 0.325, 0.135, 0.011, 0.0003]), atol=5e-4, rtol=0)
    # exp(-0.5^2 / 2) at sigma 1
    assert_close(values_of(bell(sigma=1.0), ["3.50"], [3]), torch.tensor([0.8825]), atol=5e-5, rtol=0)


def test_released_decimals_are_those_of_the_number_and_corrected_ones_those_of_the_text():
    scores = ["3.50", "3.5", "4.10", "3", "3.00", "3.51", "3.125"]
    labels = [float(score) for score in scores]
    released = values_of(bell(variant="released"), scores, labels)
    assert_close(released, torch.tensor([0.8, 0.8, 0.8, 0.8, 0.8, 1.0, 1.0]))
    assert_close(values_of(bell(), scores, labels), torch.tensor([1.0, 0.8, 1.0, 0.8, 1.0, 1.0, 1.0]))
    assert_close(values_of(bell(decimals_factor=0.5, num_decimals=1), ["3", "3.0"], [3, 3]), torch.tensor([0.5, 1.0]))


def test_the_released_rule_punishes_a_tenth_of_correctly_written_scores():
    grid = [f"{hundredths / 100:.2f}" for hundredths in range(100, 501)]
    assert all(count_decimals(text, written=True) == 2 for text in grid)
    # the released code's own expression: str(float).split(".")[-1] without trailing zeros
    by_value = [len(str(float(text)).split(".")[-1].rstrip("0")) for text in grid]
    assert [count_decimals(text, written=False) for text in grid] == by_value
    assert sum(count < 2 for count in by_value) == 41  # 41 of 401, 10.2%
    assert count_decimals("100", written=False) == count_decimals("1e2", written=True) == 0


BOTH = Label(scores={"visual_quality": 3.0, "overall": 3.0})
FULL = Answer("", 1, scores={"visual_quality": "3", "overall": "5"})
HALF = Answer("", 1, scores={"visual_quality": "3"}, fault="overall is missing")
QUIET = Answer("", 1, scores={"visual_quality": "3"})


@pytest.mark.parametrize(
    ("settings", "values", "unparsed"),
    [
        ({}, [0.75, 0.0], [0, 1]),  # (1 + 0.5) / 2
        ({"dimensions": {"visual_quality": 3.0, "overall": 1.0}}, [0.875, 0.0], [0, 1]),  # (3 + 0.5) / 4
        ({"dimensions": {"visual_quality": 3.0, "motion_quality": 9.0}, "parse": "corrected"}, [1.0, 1.0], [0, 0]),
        ({"dimensions": "overall"}, [0.5, 0.0], [0, 1]),
        ({"parse": "corrected"}, [0.75, 0.5], [0, 0.5]),
        ({"dimensions": {"visual_quality": 3.0, "overall": 1.0}, "parse": "corrected"}, [0.875, 0.75], [0, 0.25]),
    ],
)
def test_several_dimensions_are_averaged_by_weight(settings, values, unparsed):
    found = absolute(**settings)([FULL, HALF], [BOTH, BOTH], torch.tensor([0, 0]))
    assert_close(found.values, torch.tensor(values))
    assert_close(absolute(**settings)([QUIET], [BOTH], torch.tensor([0])).values, torch.tensor(values[1:]))
    assert_close(found.breakdown["unparsed"], torch.tensor(unparsed, dtype=torch.float32))


@pytest.mark.parametrize("text", ["nan", "inf", "good", ""])
def test_a_score_that_is_no_finite_number_cannot_be_read(text):
    for reward in (absolute(), bell(), absolute(parse="corrected")):
        found = reward_of(reward, [text], [3])
        assert found.values.tolist() == [0.0] and found.breakdown["unparsed"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: values_of(absolute(dimensions="motion_quality"), ["3"], [3]), "'motion_quality'.*rated on: overall"),
        (lambda: values_of(absolute(dimensions={"motion_quality": 1.0}), ["3"], [3]), "rated on: overall"),
        (lambda: absolute()([said("3")], [Label()], torch.zeros(1)), "rated on: none"),
        (lambda: absolute(dimensions={}), "at least one weight"),
        (lambda: absolute(dimensions={"overall": 0.0}), "all > 0"),
        (lambda: absolute(parse="partly"), "released, corrected"),
        (lambda: bell(sigma=0.0), "sigma must be > 0"),
        (lambda: bell(variant="exact"), "released, corrected"),
        (lambda: format_reward(variant="strict"), "released, corrected"),
        (lambda: choice([Answer("", 1)], [mos(3)], torch.zeros(1)), "labels with a choice"),
        (lambda: RankingReward(variant="paper"), "released, corrected"),
        (lambda: RankingReward(variance_floor=0.0), "variance_floor must be > 0"),
        (lambda: values_of(RankingReward(), ["3", "4"], [3, 3], [7, 7]), "at least two, got 1"),
        (lambda: values_of(RankingReward(), ["3", "4", "3"], [3, 4, 3], [0, 0, 1]), "different labels"),
        (lambda: values_of(temporal_bonus(absolute()), ["3"], [3]), "answers about perturbed clips"),
        (lambda: values_of(temporal_consistency(bell()), ["3"], [3]), "answers about perturbed clips"),
        (lambda: temporal_bonus(absolute(), variant="coded"), "paper, released, corrected"),
        (lambda: temporal_consistency(bell(), variant="summer_2025"), "name the second as also"),
        (lambda: temporal_consistency(bell(), variant="paper"), "november_2025"),
        (lambda: length_bonus(low=5, high=5), "0 <= low < high"),
        (lambda: gated_length_bonus(bell(), low=-1), "0 <= low < high"),
        (lambda: weighted({}), "at least one term"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_choice_is_right_or_wrong_and_silence_is_neither_but_earns_nothing():
    answers = [Answer("", 1, choice=word) for word in ("A", "B", "a", "neither", "yes", "")]
    answers += [Answer("", 1, choice="A", fault="not finished")]
    found = choice(
        answers, [Label(choice=word) for word in ("A", "A", "A", "neither", "yes", "no", "A")], torch.zeros(7)
    )
    assert found.values.tolist() == [1, 0, 0, 1, 1, 0, 0]
    assert found.breakdown["unparsed"].tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_ranking_is_thurstones_fidelity_against_the_other_groups_mean_and_both_variances():
    # group 0: scores 3, 5 (mean 4, variance 2), label 4; group 9: 2, 2, 5 (mean 3, variance 3), label 2
    scores, labels, groups = ["3", "2", "5", "2", "5"], [4, 2, 4, 2, 2], [0, 9, 0, 9, 9]
    found = values_of(RankingReward(), scores, labels, groups)
    spread = math.sqrt(2 + 3)
    first = [math.sqrt(phi((s - 3) / spread)) for s in (3, 5)]  # t = 1
    second = [math.sqrt(1 - phi((s - 4) / spread)) for s in (2, 5)]  # t = 0
    assert_close(found, torch.tensor([first[0], second[0], first[1], second[0], second[1]]))
    assert_close(found[:3], torch.tensor([0.7071, 0.9025, 0.9025]), atol=5e-5, rtol=0)  # Phi(0), Phi(2 / sqrt 5)
    released = values_of(RankingReward(variant="released"), scores, labels, groups)
    wide = math.sqrt(5 + 1e-6)
    expected = math.sqrt(phi(2 / wide) + 1e-6) + math.sqrt(1e-6)  # t = 1: the second root keeps 1e-6
    assert_close(released[2], torch.tensor(expected))
    assert released[2] - found[2] > 9e-4


def test_agreeing_answers_make_a_step_as_released_and_a_slope_as_corrected():
    given = ["4", "4", "3.9", "3.9"], [4, 4, 3, 3], [0, 0, 1, 1]
    # Phi(0.1 / sqrt(1e-6)) = 1, so sqrt(1 + 1e-6) + sqrt(1e-6)
    assert_close(values_of(RankingReward(variant="released"), *given), torch.full((4,), 1.001), atol=1e-5, rtol=0)
    # variances of 0 become 0.2^2 = 0.04 each: sqrt(Phi(0.1 / sqrt(0.08))) = sqrt(0.6382)
    assert_close(values_of(RankingReward(), *given), torch.full((4,), 0.7989), atol=5e-5, rtol=0)
    # at a floor of 0.005 each: sqrt(Phi(1)) = sqrt(0.8413)
    low = RankingReward(variance_floor=0.005)
    assert_close(values_of(low, *given), torch.full((4,), math.sqrt(phi(1))))


def test_equal_labels_are_a_tie_of_which_an_even_guess_is_the_best():
    assert_close(values_of(RankingReward(), ["3", "3"], [3.3, 3.3], [0, 1]), torch.ones(2))  # p = t = 1/2
    # p = Phi(1 / sqrt(0.08)) = 0.99980: sqrt(p / 2) + sqrt((1 - p) / 2)
    p = phi(1 / math.sqrt(0.08))
    expected = math.sqrt(p / 2) + math.sqrt((1 - p) / 2)
    found = reward_of(RankingReward(), ["3", "2"], [3.3, 3.3], [0, 1])
    assert_close(found.values, torch.full((2,), expected))
    assert found.breakdown["ordered"].tolist() == [0, 0]


def test_ties_are_found_whatever_the_label_and_the_size_of_the_group():
    # the mean of three times 3.3 is not 3.3 in every precision
    found = values_of(RankingReward(), ["3"] * 7, [3.3] * 7, [0, 0, 0, 1, 1, 1, 1])
    assert_close(found, torch.ones(7))


def test_ranking_is_averaged_over_the_other_groups():
    found = reward_of(RankingReward(), ["3", "1", "5"], [3, 2, 2.5], [0, 1, 2])
    # above group 1 (right), below group 2 (wrong)
    p = phi(2 / math.sqrt(0.08))
    assert_close(found.values[0], torch.tensor((math.sqrt(p) + math.sqrt(1 - p)) / 2))
    assert_close(found.breakdown["ordered"], torch.tensor([0.5, 1.0, 0.5]))


@pytest.mark.parametrize("variant", ["released", "corrected"])
def test_unreadable_answers_earn_no_rank_and_leave_the_others_alone(variant):
    reward = RankingReward(variant=variant)
    alone = values_of(reward, ["3", "5", "2", "4"], [4, 4, 2, 2], [0, 0, 1, 1])
    found = reward_of(reward, ["3", None, "5", "2", "4", None], [4, 2, 4, 2, 2, 1], [0, 1, 0, 1, 1, 2])
    assert_close(found.values, torch.stack([alone[0], torch.tensor(0.0), *alone[1:], torch.tensor(0.0)]))
    assert found.breakdown["unparsed"].tolist() == [0, 1, 0, 0, 0, 1]
    assert found.breakdown["unpaired"].tolist() == [0] * 6


def test_scores_with_a_fault_or_without_end_are_no_part_of_a_groups_statistics():
    given = [said(score) for score in ("3", "5", "2", "4")], [mos(x) for x in (4, 4, 2, 2)]
    alone = RankingReward()(*given, torch.tensor([0, 0, 1, 1])).values
    for odd in (Answer("", 1, {"overall": "1"}, fault="not finished"), said("inf")):
        found = RankingReward()([*given[0], odd], [*given[1], mos(2)], torch.tensor([0, 0, 1, 1, 1]))
        assert_close(found.values, torch.cat([alone, torch.zeros(1)]))
        assert found.breakdown["unparsed"].tolist() == [0, 0, 0, 0, 1]


def test_an_answer_without_readable_partners_is_reported():
    found = reward_of(RankingReward(), ["3", "4", None], [3, 3, 1], [0, 0, 1])
    assert found.values.tolist() == [0, 0, 0] and found.breakdown["unpaired"].tolist() == [1, 1, 0]


def temporal(reward, scores, disturbed, label=4.0):
    """Return the reward of one group of answers."""
    return reward_of(
        reward, scores, [label] * len(scores), perturbed=(disturbed, [label] * len(disturbed), [0] * len(disturbed))
    )


def vq(variant, **settings):
    """Return VQ-Insight's bonus on the overall score."""
    return temporal_bonus(absolute(), variant=variant, dimension="overall", **settings)


def test_the_papers_bonus_goes_to_answers_above_0_8_of_the_perturbed_mean():
    # perturbed accuracies 1 and 0.5: mean 0.75, bar 0.6; own accuracies 1, 0.625, 0.5
    assert_close(temporal(vq("paper"), ["4", "2.5", "2"], ["4", "2"]).values, torch.tensor([0.3, 0.3, 0.0]))
    # own accuracy 0.75 against bars of exactly 0.75 and just below
    assert temporal(vq("paper", mu=0.75), ["3"], ["4"]).values.item() == 0
    assert_close(temporal(vq("paper", mu=0.74, alpha=0.5), ["3"], ["4"]).values, torch.tensor([0.5]))


def test_the_released_bonus_goes_to_all_but_wild_answers_of_a_group():
    # mean own accuracy (1 + 0.625 + 0) / 3 = 0.54 against 0.8 x 0.5 = 0.4; the last answer is below 0.1
    assert_close(temporal(vq("released"), ["4", "2.5", "0"], ["2"]).values, torch.tensor([0.3, 0.3, 0.0]))
    # equal to the bar is enough: 0.75 >= 0.75 x 1
    assert temporal(vq("released", mu=0.75), ["3"], ["4"]).values.item() == pytest.approx(0.3)
    assert temporal(vq("released", mu=0.76), ["3"], ["4"]).values.item() == 0
    # floor 0.5 is exclusive: accuracies 0.75 and 0.5
    high = vq("released", accuracy_floor=0.5)
    assert_close(temporal(high, ["3", "2"], ["2"]).values, torch.tensor([0.3, 0.0]))


def test_the_corrected_bonus_goes_to_answers_that_score_the_perturbed_clip_lower():
    # perturbed mean 3, margin 0.25
    found = temporal(vq("corrected", margin=0.25), ["4", "3.25", "3.26", None], ["2.5", "3.5"])
    assert_close(found.values, torch.tensor([0.3, 0.0, 0.3, 0.0]))
    assert found.breakdown["paid"].tolist() == [1, 0, 1, 0] and found.breakdown["unparsed"].tolist() == [0, 0, 0, 1]
    # a perturbed clip that is scored too high is less accurate too, and pays in the paper's form only
    assert temporal(vq("corrected"), ["4"], ["5"]).values.item() == 0
    assert temporal(vq("paper"), ["4"], ["5"]).values.item() > 0
    # a score far from its label is not paid for being higher
    assert temporal(vq("corrected"), ["5"], ["1"], label=1.2).values.item() == 0
    # where the label itself does not lead, neither an exact nor an inflated score is paid
    assert temporal(vq("corrected"), ["3", "3.6", "4.5"], ["2.9"], label=3.0).values.tolist() == [0, 0, 0]
    assert_close(temporal(vq("corrected"), ["3", "3.6"], ["2.7"], label=3.0).values, torch.tensor([0.3, 0.3]))


def test_unreadable_answers_about_perturbed_clips_count_as_inaccurate_in_the_papers_forms_only():
    assert temporal(vq("paper"), ["2"], [None]).values.item() == pytest.approx(0.3)
    assert temporal(vq("released"), ["2"], [None]).values.item() == pytest.approx(0.3)
    found = temporal(vq("corrected"), ["2"], [None])
    assert found.values.item() == 0 and found.breakdown["unpaired"].item() == 1
    # read alike with those that can be read
    assert temporal(vq("corrected"), ["4"], [None, "3"]).values.item() == pytest.approx(0.3)


def test_an_answer_without_the_score_that_must_fall_is_reported():
    reward = temporal_bonus(absolute(dimensions="overall"), dimension="motion_quality")
    found = temporal(reward, ["4"], ["3"])
    assert found.values.item() == 0 and found.breakdown["unparsed"].item() == 1


@pytest.mark.parametrize("variant", ["paper", "released", "corrected"])
def test_each_group_is_compared_with_its_own_perturbed_clip(variant):
    # interleaved groups 5 and 2: in group 5 the perturbed clip is worse, in group 2 it is better, group 8 has none
    scores, labels, groups = ["4", "2", "4", "2", "4"], [4, 4, 4, 4, 4], [5, 2, 5, 2, 8]
    found = reward_of(vq(variant), scores, labels, groups, perturbed=(["4", "3", "4"], [4, 4, 4], [2, 5, 2]))
    assert_close(found.values, torch.tensor([0.3, 0.0, 0.3, 0.0, 0.0]))
    assert found.breakdown["unpaired"].tolist() == [0, 0, 0, 0, 1]


def test_november_consistency_compares_means_of_the_whole_batch():
    reward = temporal_consistency(bell(), variant="november_2025", threshold=0.9)
    # accuracies 1, .607 | 1, .135 (mean .686); perturbed .607 (mean .607): the batch wins, group 1 (mean .568) would not
    scores, labels, groups = ["4.00", "3.50", "4.00", "3.00"], [4] * 4, [0, 0, 1, 1]
    wins = reward_of(reward, scores, labels, groups, perturbed=(["3.50", "3.50"], [4, 4], [0, 1]))
    assert_close(wins.values, torch.tensor([0.3, 0.0, 0.3, 0.0]))
    # perturbed mean 1: the batch loses, so nobody is paid
    loses = reward_of(reward, scores, labels, groups, perturbed=(["4.00", "4.00"], [4, 4], [0, 1]))
    assert loses.values.tolist() == [0, 0, 0, 0]
    # equal means are enough
    equal = reward_of(reward, ["4.00"], [4], [0], perturbed=(["4.00"], [4], [0]))
    assert_close(equal.values, torch.tensor([0.3]))


def test_november_pays_errors_below_0_2295_with_two_decimals_only():
    reward = temporal_consistency(bell(), variant="november_2025", threshold=0.9)
    # exp(-e^2 / 0.5) = 0.9 at e = sqrt(-0.5 ln 0.9) = 0.2295; 3.0 has the factor 0.8
    found = temporal(reward, ["3.22", "3.23", "3.0"], ["1.00"], label=3.0)
    assert_close(found.values, torch.tensor([0.3, 0.0, 0.0]))


def test_november_pays_ranks_that_are_wrong_but_not_surely():
    reward = temporal_consistency(RankingReward(), variant="november_2025", threshold=0.5)
    # variance 0.04 each, spread sqrt(0.08) = 0.2828: sqrt(Phi(-0.1 / 0.2828)) = sqrt(0.3618) = 0.60, of 0.3: sqrt(0.1444) = 0.38
    slightly = reward_of(reward, ["3", "3.1"], [4, 2], [0, 1], perturbed=(["1", "5"], [4, 2], [0, 1]))
    assert_close(slightly.values, torch.full((2,), 0.3))
    surely = reward_of(reward, ["3", "3.3"], [4, 2], [0, 1], perturbed=(["1", "5"], [4, 2], [0, 1]))
    assert surely.values.tolist() == [0, 0]


def test_summer_consistency_pays_only_where_both_accuracies_win():
    reward = temporal_consistency(absolute(), also=format_reward(), variant="summer_2025")
    # accuracy wins (0.75 >= 0.5) and so does format (1 >= 1)
    assert_close(temporal(reward, ["3"], ["2"]).values, torch.tensor([0.3]))
    # accuracy wins (mean 0.5 >= 0.5), format loses (1/2 < 1)
    assert temporal(reward, ["4", None], ["2"]).values.tolist() == [0, 0]
    # without the second gate it is paid
    november = temporal_consistency(absolute(), also=format_reward(), variant="november_2025")
    assert_close(temporal(november, ["4", None], ["2"]).values, torch.tensor([0.3, 0.0]))
    # format wins, accuracy loses (0.75 < 1)
    assert temporal(reward, ["3"], ["4"]).values.tolist() == [0]


def test_corrected_consistency_opens_a_gate_for_each_group_by_predicted_quality():
    reward = temporal_consistency(absolute(), threshold=0.7, margin=0.25)
    # group 0: mean 3.5 against 3 opens, accuracies 1 and 0.75; group 1: 3.25 - 3 is not above the margin
    scores, groups = ["4", "3.5", "3", "3", None], [0, 1, 0, 1, 0]
    found = reward_of(reward, scores, [4, 4, 4, 4, 4], groups, perturbed=(["3", "3"], [4, 4], [0, 1]))
    assert_close(found.values, torch.tensor([0.3, 0.0, 0.3, 0.0, 0.0]))
    strict = temporal_consistency(absolute(), threshold=0.75, margin=0.25)
    found = reward_of(strict, scores, [4, 4, 4, 4, 4], groups, perturbed=(["3", "3"], [4, 4], [0, 1]))
    assert_close(found.values, torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0]))


LENGTHS = [319, 320, 321, 511, 512, 513]


def test_the_papers_length_is_strictly_between_its_bounds():
    found = values_of(length_bonus(), ["3"] * 6, [3] * 6, lengths=LENGTHS)
    assert_close(found, 0.1 * torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]))
    assert_close(
        values_of(length_bonus(low=5, high=9, gamma=0.4), ["3", None], [3, 3], lengths=[6, 6])[0], torch.tensor(0.4)
    )
    lost = reward_of(length_bonus(), [None], [3], lengths=[400])
    assert lost.values.item() == 0 and lost.breakdown["unparsed"].item() == 1


def test_the_released_length_includes_its_bounds():
    found = values_of(gated_length_bonus(absolute()), ["3"] * 6, [3] * 6, lengths=LENGTHS)
    assert_close(found, 0.2 * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 0.0]))


def test_the_released_length_needs_two_accurate_answers_in_the_group():
    # accuracies in group 0: 1, 0; in group 1: 1, 0.25 (of whatever length), 0
    scores, groups = ["5", "5", "1", "2", "1"], [0, 1, 0, 1, 1]
    found = values_of(gated_length_bonus(absolute()), scores, [5] * 5, groups, lengths=[400, 400, 400, 10, 400])
    assert_close(found, torch.tensor([0.0, 0.2, 0.0, 0.0, 0.0]))
    strict = gated_length_bonus(absolute(), accuracy_floor=0.25)
    assert values_of(strict, scores, [5] * 5, groups, lengths=[400] * 5).tolist() == [0] * 5


LABELS = {dimension: 0.0 for dimension in ("visual_quality", "motion_quality", "overall")}


def batch(num=12):
    """Return mixed answers of three interleaved groups of unequal size, the fourth of which cannot be read."""
    generator = torch.Generator().manual_seed(0)
    labels = [Label({name: 1.5 + i % 3 for name in LABELS}, "AB"[i % 2]) for i in range(num)]
    errors = 0.4 * torch.randn(num, generator=generator)
    answers = [
        Answer("<think></think><answer></answer>"[: 20 + i], 300 + 20 * i, dict.fromkeys(LABELS, f"{m:.2f}"), "A")
        for i, m in enumerate((torch.tensor([label.scores["overall"] for label in labels]) + errors).tolist())
    ]
    answers[3] = Answer("?", 400, fault="not JSON")
    return answers, labels, torch.tensor([11, 3, 7] * (num // 3 - 1) + [11, 11, 7])


@pytest.fixture
def mixed():
    answers, labels, groups = batch()
    labels[10] = Label(labels[0].scores, labels[10].choice)  # its group is that of the first
    return answers, labels, groups


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_shuffled_answers_get_their_own_rewards(name, mixed):
    answers, labels, groups = mixed
    reward, others = REWARDS[name](), Perturbed(*mixed)
    found = reward(answers, labels, groups, perturbed=others)
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(1))
    moved = reward([answers[i] for i in order], [labels[i] for i in order], groups[order], perturbed=others)
    assert found.values.dtype == torch.float32 and found.values.shape == (12,)
    assert_close(moved.values, found.values[order])
    for fact, values in found.breakdown.items():
        assert values.dtype == torch.float32 and values.isfinite().all()
        assert_close(moved.breakdown[fact], values[order])


@pytest.mark.parametrize("name", sorted(set(REWARDS) - {"format"}))
def test_an_unreadable_answer_earns_nothing_and_is_reported(name, mixed):
    answers, labels, groups = mixed
    others = Perturbed([Answer("", 1, dict.fromkeys(LABELS, "1.00"), "B") for _ in answers], labels, groups)
    found = REWARDS[name]()(answers, labels, groups, perturbed=others)
    assert found.values[3] == 0 and found.breakdown["unparsed"].tolist() == [0, 0, 0, 1] + [0] * 8
    assert found.values.max() > 0


@pytest.mark.parametrize(
    ("reward", "scores", "disturbed", "lengths", "differs"),
    [
        # typical groups: accuracies of 0.85 to 1, perturbed ones alike
        (vq("paper"), ["4", "3.8", "3.4"], ["3.6"], None, False),
        (vq("paper"), ["4", "3.8", "1.5"], ["3.6"], None, True),
        (vq("released"), ["4", "3.8", "3.4"], ["3.6"], None, False),
        (vq("released"), ["4", "3.8", "1.5"], ["3.6"], None, False),
        (vq("corrected"), ["4", "3.8", "3.4"], ["3.6"], None, True),
        (vq("corrected"), ["4", "3.8", "3.4"], ["3.0"], None, False),
        (temporal_consistency(absolute(), variant="november_2025"), ["4", "3.8", "3.4"], ["3.4"], None, False),
        (
            temporal_consistency(bell(), variant="november_2025", threshold=0.9),
            ["4.00", "3.80", "3.40"],
            ["3.00"],
            None,
            True,
        ),
        (
            temporal_consistency(bell(), also=absolute(), variant="summer_2025", threshold=0.9),
            ["4.00", "3.80", "3.40"],
            ["3.00"],
            None,
            True,
        ),
        (temporal_consistency(bell(), threshold=0.9), ["4.00", "3.80", "3.40"], ["3.00"], None, True),
        (temporal_consistency(bell(), threshold=0.9), ["4.00", "3.90", "3.85"], ["3.00"], None, False),
        (length_bonus(), ["4", "3.8", "3.4"], None, [330, 400, 500], False),
        (length_bonus(), ["4", "3.8", "3.4"], None, [300, 400, 500], True),
        (gated_length_bonus(absolute()), ["4", "3.8", "3.4"], None, [320, 400, 512], False),
        (gated_length_bonus(absolute()), ["4", "3.8", "3.4"], None, [300, 400, 512], True),
        (format_reward(), ["4", "3.8", "3.4"], None, None, False),
        (format_reward(), ["4", "3.8", None], None, None, True),
        (threshold(), ["4", "3.8", "3.7"], None, None, False),
        (absolute(), ["4", "3.8", "3.7"], None, None, True),
        (relative(), ["4", "3.8", "3.7"], None, None, True),
        (bell(), ["4.00", "3.80", "3.70"], None, None, True),
    ],
)
def test_which_rewards_tell_the_answers_of_a_group_apart(reward, scores, disturbed, lengths, differs):
    perturbed = None if disturbed is None else (disturbed, [4.0] * len(disturbed), [0] * len(disturbed))
    found = values_of(reward, scores, [4.0] * len(scores), perturbed=perturbed, lengths=lengths)
    assert found.max() > 0  # something is paid
    assert bool(((found - found.mean()).abs() > 1e-6).any()) is differs


def test_ranking_and_the_decimals_rule_change_advantages():
    ranks = values_of(RankingReward(), ["4", "3.8", "3.5"], [4, 4, 3], [0, 0, 1])[:2]
    # spread sqrt(0.08): sqrt(Phi(0.5 / 0.2828)) - sqrt(Phi(0.3 / 0.2828)) = 0.980 - 0.925
    assert_close(ranks[0] - ranks[1], torch.tensor(0.0556), atol=5e-4, rtol=0)
    both = [values_of(bell(variant=variant), ["3.50", "3.51"], [3.5, 3.5]) for variant in ("released", "corrected")]
    assert (both[0] - both[0].mean())[0] < -0.09 < (both[1] - both[1].mean())[0]


def test_a_weighted_sum_shows_its_parts_unweighted_and_what_no_part_could_read():
    reward = weighted({"form": (format_reward(), 0.5), "near": (threshold(tolerance=1.0), 2.0)})
    found = reward_of(reward, ["3.5", "4.5", None], [3, 3, 3])
    assert found.values.tolist() == [2.5, 0.5, 0.0]
    assert found.breakdown["form"].tolist() == [1, 1, 0] and found.breakdown["near"].tolist() == [1, 0, 0]
    assert found.breakdown["near/unparsed"].tolist() == [0, 0, 1]
    assert found.breakdown["unparsed"].tolist() == [0, 0, 0]  # the form was read
    assert reward_of(weighted({"near": (absolute(), 1.0)}), [None], [3]).breakdown["unparsed"].tolist() == [1]


def test_a_weighted_sum_hands_on_the_perturbed_answers():
    reward = weighted({"bonus": (vq("paper"), 2.0), "near": (absolute(), 1.0)})
    assert temporal(reward, ["4"], ["4"]).values.item() == pytest.approx(2 * 0.3 + 1.0)


def test_a_recipe_names_its_terms_by_kind_of_question():
    terms = [
        RewardConfig(kind="reason", name="format", weight=0.5),
        RewardConfig(kind="compare", name="choice"),
        RewardConfig(kind="reason", name="threshold", weight=2.0, settings={"tolerance": 1.0}),
        RewardConfig(kind="reason", name="threshold", settings={"tolerance": 0.1}),
    ]
    rewards = build_rewards(terms)
    found = reward_of(rewards["reason"], ["3.5", None], [3, 3])
    assert found.values.tolist() == [2.5, 0.0]
    assert {"format", "threshold", "threshold#2"} <= set(found.breakdown) and set(rewards) == {"reason", "compare"}


@pytest.mark.parametrize(
    ("changes", "message"), [({"name": "bel"}, "one of .*bell"), ({"settings": {"sigmas": 1.0}}, "sigmas")]
)
def test_terms_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**{"kind": "reason", "name": "bell", **changes})


def read(text, num_tokens, label):
    """Read the answers of these tests: the score itself, or nothing."""
    return said(text if text[:1].isdigit() else None, num_tokens=num_tokens)


def test_a_reward_becomes_a_function_of_trl():
    function = to_trl(absolute(), read=read, name="near")
    found = function(
        prompts=["a", "a", "b"],
        completions=["3", [{"role": "assistant", "content": "?"}], [{"role": "assistant", "content": "5"}]],
        completion_ids=[[1, 2], [1], [1, 2, 3]],
        scores=[{"overall": 5.0, "motion_quality": None}, {"overall": 5.0}, {"overall": 4.0}],
        trainer_state=None,
        log_extra=print,
        log_metric=print,
        another_column=[0, 0, 0],
    )
    assert found == [0.5, None, 0.75] and function.__name__ == "near"


def test_a_function_of_trl_finds_groups_by_column_or_by_prompt_and_counts_tokens():
    function = to_trl(gated_length_bonus(absolute()), read=read, name="length")
    rest = {"completions": ["5"] * 3, "completion_ids": [range(400)] * 3, "scores": [{"overall": 5.0}] * 3}
    # released length: groups with one accurate answer are not paid
    assert function(prompts=["a", "b", "a"], **rest) == pytest.approx([0.2, 0.0, 0.2])
    assert function(prompts=["a", "b", "a"], group=[1, 2, 2], **rest) == pytest.approx([0.0, 0.2, 0.2])


def test_a_function_of_trl_reads_choices():
    def read_word(text, num_tokens, label):
        return Answer(text, num_tokens, choice=text)

    function = to_trl(choice, read=read_word, name="right")
    assert function(prompts=[0, 1], completions=["A", "B"], completion_ids=[[1], [1]], choice=["A", "A"]) == [1.0, 0.0]


def test_a_function_of_trl_becomes_a_reward():
    seen = {}

    def function(prompts, completions, completion_ids, scores, log_metric, **columns):
        log_metric("mean", 1.0)
        seen.update(columns, prompts=prompts, lengths=[len(ids) for ids in completion_ids], completions=completions)
        return [None, float("nan"), *(row["overall"] for row in scores[2:])]

    answers = [said("3", num_tokens=7, text=f"t{i}") for i in range(3)]
    found = from_trl(function, conversational=True, prompt_of=str)(answers, [mos(3.5)] * 3, torch.tensor([4, 5, 4]))
    assert found.values.tolist() == [0.0, 0.0, 3.5] and found.breakdown["unparsed"].tolist() == [1, 1, 0]
    assert seen["prompts"] == ["4", "5", "4"] and seen["lengths"] == [7] * 3 and seen["group"] == [4, 5, 4]
    assert seen["completions"][1] == [{"role": "assistant", "content": "t1"}]
    plain = from_trl(function)(answers, [mos(3.5)] * 3, torch.tensor([4, 5, 4]))
    assert seen["completions"] == ["t0", "t1", "t2"] and seen["prompts"] == [None] * 3 and plain.values[2] == 3.5


def test_functions_of_trl_that_break_the_contract_are_refused():
    async def later(**columns):
        return []

    with pytest.raises(ValueError, match="synchronous"):
        from_trl(later)
    with pytest.raises(ValueError, match="2 values for 1 completions"):
        values_of(from_trl(lambda **columns: [1.0, 1.0]), ["3"], [3])


def test_there_and_back_changes_nothing():
    answers = [said(score, text=score) for score in ("3", "5", None)]
    given = answers, [mos(4.0)] * 3, torch.tensor([0, 1, 1])
    back = from_trl(to_trl(absolute(), read=read, name="near"))
    assert_close(back(*given).values, absolute()(*given).values)
    assert_close(back(*given).breakdown["unparsed"], torch.tensor([0.0, 0.0, 1.0]))
    words = [Answer(word, 1, choice=word) for word in "AB"], [Label(choice="A")] * 2, torch.tensor([0, 1])
    back = from_trl(
        to_trl(choice, read=lambda text, num_tokens, label: Answer(text, num_tokens, choice=text), name="right")
    )
    assert back(*words).values.tolist() == [1.0, 0.0]
