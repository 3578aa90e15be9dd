"""Temporal rewards: a bonus where the judge rates a clip above its copy that is perturbed in time.

Shapes: N answers, M answers about perturbed clips. Scores stand on the scale 1 to 5.

Both functions take the accuracy reward that measures answers and return the bonus alone: a sum holds the accuracy as a term
of its own. The papers' forms ask whether answers about the true clip are more ACCURATE; a perturbed clip
that is scored too high also opens that gate. The corrected forms compare predicted scores within the group.

Source: VQ-Insight (arXiv 2506.18564), temporal modelling reward, and xuanyuzhang21/VQ-Insight,
src/r1-v/src/open_r1/trainer/grpo_trainer_score.py, commit 76b7148; VQAThinker (arXiv 2508.06051), temporal consistency, and
clh124/VQAThinker, train/src/open-r1-multimodal/src/open_r1/trainer/grpo_trainer.py, commit ee47a40.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import (
    AnswerReward,
    Perturbed,
    blocks_of,
    check_variant,
    group_mean,
    scores_of,
    values_of,
)


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
        ValueError: Unknown variant.
    """
    check_variant(variant, ("paper", "released", "corrected"))

    def pays(compared: Compared) -> Tensor:
        """Return whether each answer rates the undisturbed clip better."""
        if variant == "corrected":
            return (compared.own - compared.perturbed_mean > margin) & (compared.accuracy > accuracy_floor)
        if variant == "paper":
            return compared.accuracy > mu * compared.perturbed_mean
        gate = group_mean(compared.accuracy, compared.groups, compared.groups) >= mu * compared.perturbed_mean
        return gate & (compared.accuracy > accuracy_floor)

    # a score above its label leads no further than the label does, or inflated scores would be paid
    scored = dimension if variant == "corrected" else None
    return _temporal_reward(alpha, accuracy, pays, scored=scored, capped=True)


def temporal_consistency(
    accuracy: AnswerReward,
    *,
    also: AnswerReward | None = None,
    variant: Literal["november_2025", "summer_2025", "corrected"] = "corrected",
    threshold: float = 0.5,
    bonus: float = 0.3,
    groups_together: int = 0,
    dimension: str = "overall",
    margin: float = 0.2,
) -> AnswerReward:
    """Return VQAThinker's temporal consistency: `bonus` or 0 for each answer.

    Args:
        accuracy: reward that must exceed `threshold`; the source pays its ranking and its bell reward, each by itself.
        also: a second accuracy reward that must win as well (summer_2025: bell where `accuracy` is ranking).
        variant: condition of the bonus. november_2025: all groups, where the mean of `accuracy` over the whole batch is at least
            that on perturbed clips. summer_2025: the same for `accuracy` and for `also`. corrected: a group whose mean
            score on the true clip is above that on its perturbed clip by more than `margin`.
        threshold: answers of accuracy above it are paid (source: ranking 0.5, bell 0.9); nothing else distinguishes the
            answers of a group.
        bonus: amount of the bonus.
        groups_together: groups that the coded forms take means over: as many neighbouring ones (the released code: those of one
            device, 2), or 0 for all of the step.
        dimension: the score that a perturbation in time must lower (corrected).
        margin: by how much, on the scale 1 to 5 (corrected).

    Returns:
        The reward. Unreadable answers count as accuracy 0 in the coded forms and are left out in `corrected`.

    Raises:
        ValueError: Unknown variant, or summer_2025 without `also`.
    """
    check_variant(variant, ("november_2025", "summer_2025", "corrected"))
    if variant == "summer_2025" and also is None:
        raise ValueError("variant summer_2025 compares two accuracies; name the second as also")
    blocks_of(torch.zeros(0, dtype=torch.long), groups_together)
    gates = (accuracy, also) if variant == "summer_2025" and also is not None else (accuracy,)

    def pays(compared: Compared) -> Tensor:
        """Return whether each answer is accurate and its group rates the undisturbed clip better."""
        if variant == "corrected":
            gate = group_mean(compared.own, compared.groups, compared.groups) - compared.perturbed_mean > margin
            return gate & (compared.accuracy > threshold)
        wins = torch.stack([compared.wins(one, groups_together) for one in gates]).all(dim=0)
        return (compared.accuracy > threshold) & wins

    return _temporal_reward(bonus, accuracy, pays, scored=dimension if variant == "corrected" else None)


@dataclass(frozen=True)
class Compared:
    """N answers about true clips beside those about the same clips perturbed.

    `accuracy` [N] is the accuracy reward; `own` [N] is what is compared, the score of a dimension or the accuracy itself,
    and `perturbed_mean` [N] its mean over the answers about the perturbed clip of each answer's group.
    """

    answers: Sequence[Answer]
    labels: Sequence[Label]
    groups: Tensor
    perturbed: Perturbed
    accuracy: Tensor
    own: Tensor
    perturbed_mean: Tensor

    def wins(self, accuracy: AnswerReward, groups_together: int) -> Tensor:
        """Return bool [N]: whether the mean accuracy over the block of each answer is at least that on the perturbed clips."""
        num = len(self.groups)
        every = torch.cat([self.groups, self.perturbed.groups])
        together = blocks_of(every, groups_together)  # by all groups, as a block may lack answers of one kind
        block, other = together[:num], together[num:]
        true_mean = group_mean(accuracy(self.answers, self.labels, self.groups).values, block, block)
        return true_mean >= group_mean(_measured(accuracy, self.perturbed), other, block)


def _temporal_reward(
    amount: float,
    accuracy: AnswerReward,
    pays: Callable[[Compared], Tensor],
    *,
    scored: str | None,
    capped: bool = False,
) -> AnswerReward:
    """Return the reward of `amount` where `pays`; answers that accuracy or score cannot read are unparsed.

    Args:
        amount: the bonus.
        accuracy: reward that measures answers about true and perturbed clips alike.
        pays: chooses the answers.
        scored: dimension whose scores are compared; None compares accuracies.
        capped: scores count up to their labels only.

    Returns:
        The reward.
    """

    def reward(
        answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the bonus of answers that rate the undisturbed clip better."""
        if perturbed is None:
            raise ValueError(
                "a temporal reward needs answers about perturbed clips; set a perturbation for the rollouts"
            )
        accurate = accuracy(answers, labels, groups)
        unparsed = accurate.breakdown.get("unparsed", torch.zeros(len(answers))) >= 1
        if scored is None:
            own, others = accurate.values, _measured(accuracy, perturbed)
        else:
            own, others = scores_of(answers, scored), scores_of(perturbed.answers, scored)
            if capped:
                own = torch.minimum(own, torch.tensor([_label(label, scored) for label in labels], dtype=own.dtype))
            unparsed = unparsed | own.isnan()
        mean = group_mean(others, perturbed.groups, groups)
        compared = Compared(answers, labels, groups, perturbed, accurate.values, own, mean)
        paid = pays(compared) & ~unparsed
        return values_of(amount * paid.float(), unparsed, paid=paid, unpaired=mean.isnan())

    return reward


def _measured(accuracy: AnswerReward, perturbed: Perturbed) -> Tensor:
    return accuracy(perturbed.answers, perturbed.labels, perturbed.groups).values


def _label(label: Label, dimension: str) -> float:
    return label.scores.get(dimension, math.nan)
