"""Rewards for answers of a certain length.

Shapes: N answers. Lengths are tokens, the end token among them.

Source: VQ-Insight (arXiv 2506.18564), length reward; released code xuanyuzhang21/VQ-Insight,
src/r1-v/src/open_r1/trainer/grpo_trainer_score.py, commit 76b7148. The bonus easily outweighs the spread of a continuous
accuracy within a group (0.01 to 0.1), and can then set the sign of an advantage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import AnswerReward, Perturbed, values_of


def length_bonus(*, low: int = 320, high: int = 512, gamma: float = 0.1) -> AnswerReward:
    """Return the reward of VQ-Insight's paper: `gamma` where `low` < length < `high`, else 0.

    Args:
        low: tokens, itself too few.
        high: tokens, itself too many.
        gamma: the bonus.

    Returns:
        The reward; an answer with a fault earns 0: length alone is not paid.
    """
    _check(low, high)

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the bonus of answers of the right length."""
        fits = [low < answer.num_tokens < high and not answer.fault for answer in answers]
        return values_of([gamma * fit for fit in fits], [float(bool(answer.fault)) for answer in answers])

    return reward


def gated_length_bonus(
    accuracy: AnswerReward, *, low: int = 320, high: int = 512, gamma: float = 0.2, accuracy_floor: float = 0.1
) -> AnswerReward:
    """Return the reward of VQ-Insight's released code: `gamma` for accurate answers of the right length.

    Args:
        accuracy: reward that must exceed `accuracy_floor`, without any temporal bonus.
        low: fewest tokens, itself enough.
        high: most tokens, itself not too many.
        gamma: the bonus.
        accuracy_floor: a group is paid only where at least two answers, of whatever length, exceed it.

    Returns:
        The reward.
    """
    _check(low, high)

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the bonus of accurate answers of the right length."""
        accurate = accuracy(answers, labels, groups).values > accuracy_floor
        several = (accurate[None] & (groups[:, None] == groups[None])).sum(dim=1) >= 2
        fits = torch.tensor([low <= answer.num_tokens <= high for answer in answers], dtype=torch.bool)
        unparsed = torch.tensor([bool(answer.fault) for answer in answers], dtype=torch.bool)
        return values_of(gamma * (accurate & several & fits & ~unparsed).float(), unparsed)

    return reward


def _check(low: int, high: int) -> None:
    if not 0 <= low < high:
        raise ValueError(f"length bounds must be 0 <= low < high, got {low} and {high}")
