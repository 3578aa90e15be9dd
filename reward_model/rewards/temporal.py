"""Temporal rewards: a bonus where the judge sees that a clip perturbed in time is another, worse clip.

Shapes: N answers, M answers about perturbed clips. Scores stand on the scale 1 to 5.

Both functions take the accuracy reward by which answers are measured and return the bonus alone, so that a sum holds the
accuracy as a term of its own. The papers' forms ask whether answers about the true clip are more ACCURATE; a perturbed clip
that is scored too high also opens that gate. The corrected forms compare predicted scores within the group.

Source: VQ-Insight (arXiv 2506.18564), temporal modelling reward, and xuanyuzhang21/VQ-Insight,
src/r1-v/src/open_r1/trainer/grpo_trainer_score.py, commit 76b7148; VQAThinker (arXiv 2508.06051), temporal consistency, and
clh124/VQAThinker, train/src/open-r1-multimodal/src/open_r1/trainer/grpo_trainer.py, commit ee47a40.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import AnswerReward, Perturbed, check_variant, group_mean, scores_of, values_of


def temporal_bonus(
    accuracy: AnswerReward,
    *,
    variant: Literal["paper", "released", "corrected"] = "corrected",
    alpha: float = 0.3,
    mu: float = 0.8,
    accuracy_floor: float = 0.1,
    dimension: str = "motion_quality",
    margin: float = 0.2,
) -> AnswerReward:
    """Return VQ-Insight's temporal bonus: `alpha` or 0 for each answer.

    Args:
        accuracy: reward in [0, 1] that measures answers about true and perturbed clips alike.
        variant: paper: an answer whose accuracy is above `mu` x the mean accuracy on the perturbed clip. released: every
            answer above `accuracy_floor` of a group whose mean accuracy is at least `mu` x that mean; this is nearly always
            the whole group, and then cancels in the advantages. corrected: an answer above `accuracy_floor` whose score,
            as far as its label reaches, is above the perturbed clip's mean score by more than `margin`.
        alpha: the bonus.
        mu: raising it asks for a greater lead over the perturbed clip (paper and released).
        accuracy_floor: keeps wild answers from being paid (released and corrected).
        dimension: the score that a perturbation in time must lower (corrected).
        margin: by how much, on the scale 1 to 5 (corrected).

    Returns:
        The reward. A group without answers about its perturbed clip earns 0 and is "unpaired"; for the papers' forms
        unreadable answers have accuracy 0, `corrected` leaves them out.

    Raises:
        ValueError: an unknown variant.
    """
    check_variant(variant, ("paper", "released", "corrected"))

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the bonus of answers that rate the undisturbed clip better."""
        others = _required(perturbed)
        own = accuracy(answers, labels, groups)
        if variant == "corrected":
            scores, other = _scores(answers, groups, others, dimension)
            # a score above its label leads no further than the label does, or inflated scores would be paid
            reach = torch.tensor([label.scores.get(dimension, math.nan) for label in labels], dtype=scores.dtype)
            scores = torch.minimum(scores, reach)
            paid = (scores - other > margin) & (own.values > accuracy_floor)
            return _bonus(alpha, paid, own, other, scores)
        other = group_mean(_measured(accuracy, others), others.groups, groups)
        if variant == "paper":
            return _bonus(alpha, own.values > mu * other, own, other)
        gate = group_mean(own.values, groups, groups) >= mu * other
        return _bonus(alpha, gate & (own.values > accuracy_floor), own, other)

    return reward


def temporal_consistency(
    accuracy: AnswerReward,
    *,
    also: AnswerReward | None = None,
    variant: Literal["november_2025", "summer_2025", "corrected"] = "corrected",
    threshold: float = 0.5,
    bonus: float = 0.3,
    dimension: str = "overall",
    margin: float = 0.2,
) -> AnswerReward:
    """Return VQAThinker's temporal consistency: `bonus` or 0 for each answer.

    Args:
        accuracy: what is measured and must exceed `threshold`; the source pays its ranking and its bell reward, each by
            itself.
        also: a second accuracy reward that must win as well (summer_2025: bell where `accuracy` is ranking).
        variant: who may be paid. november_2025: all groups, where the mean of `accuracy` over the whole batch is at least
            that on perturbed clips. summer_2025: the same for `accuracy` and for `also`. corrected: a group whose mean
            score on the true clip is above that on its perturbed clip by more than `margin`.
        threshold: the answers of accuracy above it are paid (source: ranking 0.5, bell 0.9), which is all that tells
            answers of a group apart.
        bonus: what is paid.
        dimension: the score that a perturbation in time must lower (corrected).
        margin: by how much, on the scale 1 to 5 (corrected).

    Returns:
        The reward. Unreadable answers count as accuracy 0 in the coded forms and are left out in `corrected`.

    Raises:
        ValueError: an unknown variant, or summer_2025 without `also`.
    """
    check_variant(variant, ("november_2025", "summer_2025", "corrected"))
    if variant == "summer_2025" and also is None:
        raise ValueError("variant summer_2025 compares two accuracies; name the second as also")
    gates = (accuracy, also) if variant == "summer_2025" and also is not None else (accuracy,)

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the bonus of groups that rate the undisturbed clip better."""
        others = _required(perturbed)
        own = accuracy(answers, labels, groups)
        if variant == "corrected":
            scores, other = _scores(answers, groups, others, dimension)
            gate = group_mean(scores, groups, groups) - other > margin
            return _bonus(bonus, gate & (own.values > threshold), own, other, scores)
        wins = all(bool(one(answers, labels, groups).values.mean() >= _measured(one, others).mean()) for one in gates)
        other = group_mean(_measured(accuracy, others), others.groups, groups)
        return _bonus(bonus, (own.values > threshold) & wins, own, other)

    return reward


def _required(perturbed: Perturbed | None) -> Perturbed:
    if perturbed is None:
        raise ValueError("a temporal reward needs answers about perturbed clips; name a perturbation for the rollouts")
    return perturbed


def _measured(accuracy: AnswerReward, perturbed: Perturbed) -> Tensor:
    return accuracy(perturbed.answers, perturbed.labels, perturbed.groups).values


def _scores(answers: Sequence[Answer], groups: Tensor, others: Perturbed, dimension: str) -> tuple[Tensor, Tensor]:
    """Return the scores [N], and the mean score [N] on the perturbed clip of each answer's group; NaN where unreadable."""
    return scores_of(answers, dimension), group_mean(scores_of(others.answers, dimension), others.groups, groups)


def _bonus(amount: float, paid: Tensor, own: RewardValues, other: Tensor, scores: Tensor | None = None) -> RewardValues:
    """Return `amount` where `paid`; unread is what the accuracy or, if given, the score could not read."""
    unparsed = own.breakdown.get("unparsed", torch.zeros(len(paid))) >= 1
    if scores is not None:
        unparsed = unparsed | scores.isnan()
    paid = paid & ~unparsed
    return values_of(amount * paid.float(), unparsed, paid=paid, unpaired=other.isnan())
