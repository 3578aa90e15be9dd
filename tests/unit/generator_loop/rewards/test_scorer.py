"""Rewards and the transforms of control experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from generator_loop.records import Draw
from generator_loop.rewards.scorer import Scorer, load_term, transformed
from tests.plain_rollouts import PROMPTS, drawn, scored


class Scores:
    def __init__(self, rewards: Tensor) -> None:
        self.rewards, self.scores = rewards, {"overall": rewards}
        self.reasons = {"overall": ["" if value else "unreadable" for value in rewards.isfinite().tolist()]}


class BrightnessJudge:
    """Scores a clip by its brightness times the weight of overall."""

    def __call__(self, videos: Tensor, prompts: Sequence[str], *, fps: float, weights=None, **_) -> Scores:
        assert len(prompts) == len(videos) and fps == 8.0
        return Scores(videos.mean(dim=(1, 2, 3, 4)) * weights["overall"])


def darkness(frames: Tensor, prompts: Sequence[str], *, fps: float) -> list[float]:
    return (1 - frames.mean(dim=(1, 2, 3, 4))).tolist()


def scorer(**changes) -> Scorer:
    settings = dict(judge=BrightnessJudge(), weights={"overall": 1.0, "none": 0.0}, terms={}, fps=8.0, batch_size=4)
    return Scorer(**{**settings, **changes})


def test_terms_are_added_with_their_weights() -> None:
    found = scorer(terms={"dark": (darkness, 2.0)}).score(drawn([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(found.rewards, torch.tensor([2.0, 1.75, 1.5, 1.0]))
    torch.testing.assert_close(found.scores["dark"], torch.tensor([1.0, 0.75, 0.5, 0.0]))


class Place:
    """A column whose values are given."""

    def __init__(self, *given: float) -> None:
        self.given = torch.tensor(given)

    def values(self, samples: object) -> Tensor:
        """Return them."""
        return self.given


def test_columns_are_added_with_their_weights_and_kept_as_scores() -> None:
    columns = {"wins": (Place(0.0, 1.0, 0.5, math.nan), 0.0), "natural": (Place(1.0, 2.0, 3.0, 4.0), 0.1)}
    one = scorer(columns=columns)
    found = one.score(drawn([0.0, 0.25, 0.5, 1.0]))
    torch.testing.assert_close(found.rewards, torch.tensor([0.1, 0.45, 0.8, 1.4]))
    assert bool(found.valid.all())  # a column that is only measured leaves the reward as it is
    assert found.by("wins").tolist()[:3] == [0.0, 1.0, 0.5] and found.by("reward") is found.rewards
    assert one.parts == {"overall": 1.0, "natural": 0.1}
    broken = scorer(columns={"natural": (Place(1.0, math.nan, 3.0, 4.0), 0.1)}).score(drawn([0.0, 0.25, 0.5, 1.0]))
    assert broken.valid.tolist() == [True, False, True, True]


def test_a_missing_score_is_not_valid() -> None:
    found = scorer(terms={"broken": (lambda *_, **__: [math.nan, 0, 0, 0], 1.0)}).score(drawn([0.1, 0.2, 0.3, 0.4]))
    assert found.valid.tolist() == [False, True, True, True]


def test_a_term_of_the_wrong_length_is_left_out_of_all_rewards_by_name() -> None:
    values = scorer(terms={"short": (lambda frames, prompts, *, fps: [0.0], 1.0)}).score(drawn([0.0, 1.0, 0.5, 0.25]))
    assert values.rewards.tolist() == [0.0, 1.0, 0.5, 0.25] and bool(values.scores["short"].isnan().all())
    assert values.left_out == {"short": "reward term 'short' is left out: it returned shape [1], expected [4]"}


def test_a_term_that_fails_on_another_process_is_left_out_here_too_unless_this_one_scores_alone() -> None:
    terms = {"dark": (darkness, 2.0)}
    together = scorer(terms=terms, any_process=lambda _failed: True)
    values = together.score(drawn([0.0, 1.0]))
    assert values.rewards.tolist() == [0.0, 1.0] and "failed on another process" in values.left_out["dark"]
    assert together.score(drawn([0.0, 1.0]), together=False).rewards.tolist() == [2.0, 1.0]


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

    def __call__(self, videos: Tensor, prompts: Sequence[str], *, fps: float, weights=None, **_) -> Scores:
        level = videos.mean(dim=(1, 2, 3, 4))
        return Scores(torch.where(level == 1, math.nan, 1 - level))


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
