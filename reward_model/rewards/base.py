"""Protocol of a GRPO reward, and helpers that all rewards share: reading scores, means over groups, the reward's record.

Shapes: N answers, K groups. Scores and labels stand on the scale 1 to 5; statistics are kept in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reward_model.records import Answer, Label, RewardValues

SCALE = (1.0, 5.0)
"""Ends of the scale of scores and labels."""

SCALE_WIDTH = 4.0
"""Width of the scale 1 to 5; an error divided by it stands on the scale of quality, 0 to 1."""


@dataclass(frozen=True)
class Perturbed:
    """Answers of the same groups about perturbed clips, to compare with, never to learn from; `labels` are the originals'."""

    answers: Sequence[Answer]
    labels: Sequence[Label]
    groups: Tensor


class AnswerReward(Protocol):
    """A pure reward: N answers, their labels and the group [N] of each -> `RewardValues`.

    `groups[i]` is the id of the prompt that answer i was sampled for, unique over all processes; groups may be interleaved
    and of unequal size. An answer that cannot be read earns 0 and counts as 1 in the breakdown's "unparsed".
    """

    def __call__(
        self,
        answers: Sequence[Answer],
        labels: Sequence[Label],
        groups: Tensor,
        *,
        perturbed: Perturbed | None = None,
    ) -> RewardValues:
        """Return the reward of each answer."""


def number_of(answer: Answer, dimension: str) -> float:
    """Return the score of a dimension as the answer states it; NaN where it is missing or no finite number."""
    try:
        number = float(answer.scores.get(dimension, "nan"))
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def scores_of(answers: Sequence[Answer], dimension: str) -> Tensor:
    """Return the scores [N] of a dimension in float64, NaN for answers with a fault or without that score."""
    numbers = [math.nan if answer.fault else number_of(answer, dimension) for answer in answers]
    return torch.tensor(numbers, dtype=torch.float64)


def label_of(label: Label, dimension: str) -> float:
    """Return the label of a dimension, or refuse a clip that has none."""
    if dimension not in label.scores:
        rated = ", ".join(label.scores) or "none"
        raise ValueError(
            f"a reward reads the label of {dimension!r}, but a clip is rated on: {rated}; name one of those"
        )
    return float(label.scores[dimension])


def group_mean(values: Tensor, groups: Tensor, of: Tensor) -> Tensor:
    """Return the mean over whole groups, without the entries that are NaN.

    Args:
        values: [N].
        groups: id of each value's group [N].
        of: ids of the asked groups [K], repeated or not.

    Returns:
        [K]; NaN for a group without values.
    """
    counted = (of[:, None] == groups[None]) & values.isfinite()[None]  # [K, N]
    total = torch.where(counted, values.nan_to_num()[None], 0.0).sum(dim=1)
    return total / counted.sum(dim=1)


def blocks_of(groups: Tensor, groups_together: int) -> Tensor:
    """Return the number of the block [N] that each answer is in: as many neighbouring groups, by their ids; 0 is one block.

    Args:
        groups: id of each answer's group [N].
        groups_together: groups of a block, at least 2, or 0.

    Returns:
        Int64 [N].

    Raises:
        ValueError: 1, or a negative number.
    """
    if groups_together < 0 or groups_together == 1:
        raise ValueError(f"groups_together must be 0 or at least 2, got {groups_together}")
    place = groups.unique(return_inverse=True)[1]
    return place // groups_together if groups_together else torch.zeros_like(place)


def values_of(values: Tensor | Sequence[float], unparsed: Tensor | Sequence[float], **facts: Tensor) -> RewardValues:
    """Return the record of a reward, in float32: values [N], the unreadable share of each answer [N], further facts [N]."""
    breakdown = {"unparsed": torch.as_tensor(unparsed, dtype=torch.float32)}
    breakdown |= {name: fact.to(torch.float32) for name, fact in facts.items()}
    return RewardValues(torch.as_tensor(values, dtype=torch.float32), breakdown)


def check_variant(variant: str, known: Sequence[str]) -> None:
    """Refuse an unknown variant."""
    if variant not in known:
        raise ValueError(f"variant must be one of {', '.join(known)}, got {variant!r}")
