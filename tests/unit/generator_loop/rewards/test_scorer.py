"""Rewards, control transforms, monitors and the judge refresh's pure parts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from generator_loop.guards import monitors
from generator_loop.records import Conditioning, Draw, Prompt, Rollout, Scored
from generator_loop.refresh import refresh as judge_refresh
from generator_loop.rewards.scorer import Scorer, load_term, transformed

PROMPTS = (Prompt(7, "a red ring"), Prompt(3, "a blue cross"))


class Answer:
    def __init__(self, rewards: Tensor) -> None:
        self.rewards, self.scores = rewards, {"overall": rewards}


class BrightnessJudge:
    """Scores a clip by its brightness times the weight of overall."""

    def __call__(self, videos: Tensor, prompts: Sequence[str], *, fps: float, weights=None, **_) -> Answer:
        assert len(prompts) == len(videos) and fps == 8.0
        return Answer(videos.mean(dim=(1, 2, 3, 4)) * weights["overall"])


def darkness(frames: Tensor, prompts: Sequence[str], *, fps: float) -> list[float]:
    return (1 - frames.mean(dim=(1, 2, 3, 4))).tolist()


def drawn(levels: Sequence[float]) -> Rollout:
    level = torch.tensor(levels).view(-1, 1, 1, 1, 1)
    frames = level.expand(-1, 3, 3, 4, 4)
    return Rollout(
        prompts=PROMPTS,
        group_size=len(levels) // 2,
        noise=level,
        latents=level.clone(),
        cond=Conditioning({}),
        frames=frames,
    )


def scorer(**changes) -> Scorer:
    settings = dict(judge=BrightnessJudge(), weights={"overall": 1.0, "none": 0.0}, terms={}, fps=8.0, batch_size=4)
    return Scorer(**{**settings, **changes})


def scored(values: Sequence[float]) -> Scored:
    rewards = torch.tensor(values)
    return Scored(rewards=rewards, valid=rewards.isfinite(), scores={"overall": rewards})


def test_terms_are_added_with_their_weights() -> None:
    found = scorer(terms={"dark": (darkness, 2.0)}).score(drawn([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(found.rewards, torch.tensor([2.0, 1.75, 1.5, 1.0]))
    torch.testing.assert_close(found.scores["dark"], torch.tensor([1.0, 0.75, 0.5, 0.0]))


def test_a_missing_score_is_not_valid() -> None:
    found = scorer(terms={"broken": (lambda *_, **__: [math.nan, 0, 0, 0], 1.0)}).score(drawn([0.1, 0.2, 0.3, 0.4]))
    assert found.valid.tolist() == [False, True, True, True]


def test_a_term_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'short' returned shape \[1\], expected \[4\]"):
        scorer(terms={"short": (lambda *_, **__: [0.0], 1.0)}).score(drawn([0.1, 0.2, 0.3, 0.4]))


def test_terms_are_found_by_module_and_function() -> None:
    assert load_term("math:sqrt") is math.sqrt
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_term("math:squrt")
    with pytest.raises(ValueError, match="not a function"):
        load_term("math:pi")


def test_the_differentiable_reward_reaches_the_pixels() -> None:
    frames = torch.rand(2, 3, 3, 4, 4, requires_grad=True)
    scorer().differentiable(frames, PROMPTS).sum().backward()
    torch.testing.assert_close(frames.grad, torch.full_like(frames, 1 / (3 * 3 * 4 * 4)))


class DarkJudge:
    """Disagrees with the other by brightness: 1 - brightness, or no score at all for a white clip."""

    def __call__(self, videos: Tensor, prompts: Sequence[str], *, fps: float, weights=None, **_) -> Answer:
        level = videos.mean(dim=(1, 2, 3, 4))
        return Answer(torch.where(level == 1, math.nan, 1 - level))


def test_judges_that_disagree_pay_less() -> None:
    found = scorer(others=[DarkJudge()], pessimism=2.0).score(drawn([0.0, 0.25, 0.5, 1.0]))
    # 0 and 1: mean 1/2, deviation 1/2; 1/4 and 3/4: deviation 1/4; 1/2 twice: none
    torch.testing.assert_close(found.rewards, torch.tensor([-0.5, 0.0, 0.5, math.nan]), equal_nan=True)
    torch.testing.assert_close(found.disagreement[:3], torch.tensor([0.5, 0.25, 0.0]))
    assert found.valid.tolist() == [True, True, True, False]
    torch.testing.assert_close(found.scores["overall"], torch.tensor([0.0, 0.25, 0.5, 1.0]))  # the first judge's own
    assert scorer().score(drawn([0.0, 1.0])).disagreement is None


def test_the_pessimistic_reward_reaches_the_pixels_and_is_finite_where_judges_agree() -> None:
    levels = torch.tensor([0.25, 0.5]).view(-1, 1, 1, 1, 1)
    frames = levels.expand(-1, 3, 3, 4, 4).clone().requires_grad_(True)
    scorer(others=[DarkJudge()], pessimism=2.0).differentiable(frames, PROMPTS).sum().backward()
    # mean 1/2 has no gradient; the deviation 1/2 - level has -1
    expected = torch.tensor([2.0, 0.0]).view(-1, 1, 1, 1, 1).expand_as(frames) / (3 * 3 * 4 * 4)
    torch.testing.assert_close(frames.grad, expected)


def test_shuffled_rewards_stay_within_their_group_and_do_not_depend_on_the_others() -> None:
    values, rollout = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0], drawn([0.0] * 8)
    draws = [transformed(scored(values), rollout, "shuffle", draw=Draw(0, step)).rewards for step in range(8)]
    for found in draws:
        assert sorted(found[:4].tolist()) == values[:4] and sorted(found[4:].tolist()) == values[4:]
    assert any(found.tolist() != values for found in draws)


def test_negated_rewards_turn_the_order_round() -> None:
    assert transformed(
        scored([0.2, 0.8]), drawn([0.0] * 2), "negate", draw=Draw(0, 0)
    ).rewards.tolist() == pytest.approx([-0.2, -0.8])


def test_an_alarm_is_raised_outside_the_limits_only() -> None:
    first = dict.fromkeys(monitors.LIMITS, 1.0)
    assert monitors.alarms(first, first) == ()
    assert len(monitors.alarms({**first, "motion": 0.1}, first)) == 1


def test_a_still_clip_has_no_motion_and_equal_latents_no_spread() -> None:
    found = monitors.statistics(drawn([0.5, 0.5, 0.25, 0.25]), scored([1.0, 1.0, math.nan, 0.0]))
    assert found["motion"] == 0 and found["group_spread"] == 0
    assert found["valid_fraction"] == 0.75 and found["reward"] == pytest.approx(2 / 3)


def test_too_many_missing_scores_stop_the_run() -> None:
    monitors.refuse_invalid(scored([math.nan, 1.0]), max_fraction=0.5)
    with pytest.raises(RuntimeError, match="50% of the samples have no score"):
        monitors.refuse_invalid(scored([math.nan, 1.0]), max_fraction=0.4)


def test_the_loser_is_the_worst_that_has_a_score_and_the_winner_the_best() -> None:
    rollout, values = drawn([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), scored([0.5, math.nan, 0.9, math.nan, math.nan, math.nan])
    (loser,) = judge_refresh.losers_of(rollout, values)
    ((prompt, frames),) = judge_refresh.winners_of(rollout, values)
    assert loser.prompt == prompt == PROMPTS[0]
    assert float(loser.latents) == pytest.approx(0.1) and float(frames.mean()) == pytest.approx(0.3)


def test_a_winner_is_paired_with_the_loser_of_its_own_prompt() -> None:
    new, old = torch.ones(3, 3, 4, 4), torch.zeros(3, 3, 4, 4)
    pairs = judge_refresh.new_beats_old([(PROMPTS[0], new), (PROMPTS[1], new)], [(PROMPTS[1], old)], 8.0)
    (pair,) = pairs
    assert pair.prompt == "a blue cross" and pair.preference == {"overall": 1.0}
    assert pair.first.frames is new and pair.second.frames is old


def test_reanchoring_undoes_an_affine_change_of_the_judge() -> None:
    initial = torch.tensor([0.1, 0.4, 0.8, math.nan])
    affine = judge_refresh.reanchor(2 * initial - 0.3, initial)
    assert affine(2 * 0.6 - 0.3) == pytest.approx(0.6)


def test_a_judge_that_says_the_same_of_all_anchors_is_left_as_it_is() -> None:
    assert judge_refresh.reanchor(torch.ones(3), torch.tensor([0.1, 0.2, 0.3])) == judge_refresh.Affine()
