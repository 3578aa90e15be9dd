"""Reward for the form of an answer: 1 if it is readable.

Shapes: N answers.

Source: VQ-Insight (arXiv 2506.18564), format reward; released code xuanyuzhang21/VQ-Insight, src/r1-v/src/open_r1/grpo.py,
commit 76b7148 (VQAThinker uses the same pattern).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import AnswerReward, Perturbed, check_variant, values_of

_BLOCKS = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)


def format_reward(*, variant: Literal["released", "corrected"] = "corrected") -> AnswerReward:
    """Return the reward that is 1 for an answer of the asked form, else 0.

    Args:
        variant: released: the whole text is a think block, white space and an answer block, whatever they hold. corrected:
            the answer has no fault, so what was asked for also stands in the answer block.

    Returns:
        The reward. A malformed answer has earned its 0, so "unparsed" stays 0.

    Raises:
        ValueError: Unknown variant.
    """
    check_variant(variant, ("released", "corrected"))
    fits = _has_blocks if variant == "released" else _is_faultless

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return 1 for answers of the form, else 0."""
        values = [float(fits(answer)) for answer in answers]
        return values_of(values, torch.zeros(len(values)))

    return reward


def _has_blocks(answer: Answer) -> bool:
    return _BLOCKS.fullmatch(answer.text) is not None


def _is_faultless(answer: Answer) -> bool:
    return not answer.fault
