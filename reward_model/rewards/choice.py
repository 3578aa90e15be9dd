"""Reward for the right choice: preferences ("A", "B", "neither") and yes-no questions.

Shapes: N answers.

Source: VQ-Insight (arXiv 2506.18564), preference and auxiliary question rewards: 1 if the choice equals the label, else 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import Perturbed, values_of


def choice(
    answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
) -> RewardValues:
    """Return 1 for exactly the right word, else 0.

    Args:
        answers: with their `choice`.
        labels: with the right `choice`.
        groups: [N], not read.
        perturbed: not read.

    Returns:
        The rewards.

    Raises:
        ValueError: A label without a choice.
    """
    if not all(label.choice for label in labels):
        raise ValueError("the choice reward needs labels with a choice; reward scored clips with a score reward")
    unparsed = [bool(answer.fault) or not answer.choice for answer in answers]
    right = [answer.choice == label.choice for answer, label in zip(answers, labels, strict=True)]
    return values_of([float(r and not u) for r, u in zip(right, unparsed, strict=True)], [float(u) for u in unparsed])
