"""VQAThinker's pairwise ranking: an answer is right if it puts its clip in the right order among all other clips.

Shapes: N answers of K groups, gathered from all processes. Scores and labels stand on the scale 1 to 5.

Source: VQAThinker (arXiv 2508.06051), ranking reward: Thurstone's model in the fidelity measure, after VisualQuality-R1
(arXiv 2505.14460); clh124/VQAThinker, train/src/open-r1-multimodal/src/open_r1/grpo_jsonl.py, commit ee47a40.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import SCALE_WIDTH, Perturbed, blocks_of, check_variant, label_of, scores_of, values_of

RELEASED_EPSILON = 1e-6
"""Constant that the released code adds to the sum of both variances and under both roots of the fidelity."""


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics over the readable scores of each group.

    `own` [N] is the place of each answer's group among the K groups; `mean` [K] is NaN where no answer is readable,
    `variance` [K] is unbiased, and 0 where only one is; `label` [K].
    """

    own: Tensor
    mean: Tensor
    variance: Tensor
    label: Tensor


@dataclass(frozen=True, kw_only=True)
class RankingReward:
    """The reward: mean over the other groups z of sqrt(p t) + sqrt((1 - p) (1 - t)).

    p = Phi((score - mean_z) / sqrt(variance + variance_z)) is how surely the answer ranks its clip above z, t is 1, 0.5 or
    0 where its label is above, equal to or below that of z. Chance (p = 0.5) earns sqrt(0.5).
    """

    dimension: str = "overall"
    """Ranked score."""
    variant: Literal["released", "corrected"] = "corrected"
    """released: 1e-6 is added to the sum of both variances and under both roots. corrected: each group's variance is at
    least `variance_floor`, so a group whose answers agree does not make p a step, and nothing is added. In both,
    unreadable answers are left out of mean and variance (the released code draws a random score for them)."""
    groups_together: int = 0
    """Clips that are ranked among one another: as many neighbouring groups of the step, as the released code ranks those of one
    device (8 answers of 4 per clip: 2 clips); 0 ranks all clips of the step."""
    variance_floor: float = 0.05**2 * SCALE_WIDTH**2
    """Smallest variance of a group in `corrected`: a deviation of 0.05 in quality, 0.2 on the scale 1 to 5. Raising it
    softens p where the judge is sure."""

    def __post_init__(self) -> None:
        """Check the variant and the floor."""
        check_variant(self.variant, ("released", "corrected"))
        if self.variance_floor <= 0:
            raise ValueError(f"variance_floor must be > 0, got {self.variance_floor}")
        blocks_of(torch.zeros(0, dtype=torch.long), self.groups_together)

    def __call__(
        self, answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the rewards in [0, 1] (released: up to 1.001).

        Args:
            answers: of all processes, so that every clip meets all others of the step.
            labels: with the label of the dimension, equal within a group.
            groups: [N].
            perturbed: not read.

        Returns:
            The rewards; "ordered" is the share of other groups that the score is rightly above, below or equal to, and
            "unpaired" is 1 where no other group has a readable answer, which earns 0.
        """
        scores = scores_of(answers, self.dimension)
        truth = torch.tensor([label_of(label, self.dimension) for label in labels], dtype=torch.float64)
        stats = statistics(scores, truth, groups)
        label = stats.label[stats.own][:, None]
        fidelity = self._fidelity(scores[:, None], label, stats)  # [N, K]
        others = (stats.own[:, None] != torch.arange(len(stats.mean))) & fidelity.isfinite()  # [N, K]
        block = blocks_of(torch.arange(len(stats.mean)), self.groups_together)  # groups come in the order of their ids
        others &= block[stats.own][:, None] == block
        right = torch.sign(scores[:, None] - stats.mean) == torch.sign(label - stats.label)
        unparsed = scores.isnan()
        return values_of(
            _mean(fidelity, others),
            unparsed,
            ordered=_mean(right.double(), others),
            unpaired=~others.any(dim=1) & ~unparsed,
        )

    def _fidelity(self, score: Tensor, label: Tensor, stats: GroupStatistics) -> Tensor:
        released = self.variant == "released"
        epsilon = RELEASED_EPSILON if released else 0.0
        variance = stats.variance if released else stats.variance.clamp_min(self.variance_floor)  # [K]
        spread = (variance[stats.own][:, None] + variance + epsilon).sqrt()  # [N, K]
        p = torch.special.ndtr((score - stats.mean) / spread)
        t = 0.5 + 0.5 * torch.sign(label - stats.label)
        return (p * t + epsilon).sqrt() + ((1 - p) * (1 - t) + epsilon).sqrt()


def statistics(scores: Tensor, labels: Tensor, groups: Tensor) -> GroupStatistics:
    """Return mean, unbiased variance and label of each group.

    Args:
        scores: [N], NaN where unreadable.
        labels: [N].
        groups: [N].

    Returns:
        The statistics over readable scores.

    Raises:
        ValueError: fewer than two groups, or a group with two labels.
    """
    ids, own = groups.unique(return_inverse=True)
    if len(ids) < 2:
        raise ValueError(
            f"ranking compares groups with one another and needs at least two, got {len(ids)}; "
            "gather the answers of all processes or ask about more clips in a step"
        )
    label = torch.zeros(len(ids), dtype=labels.dtype)
    label[own] = labels
    if not torch.equal(label[own], labels):
        raise ValueError(
            "the answers of a group have different labels; ids of groups must be unique over all processes"
        )
    readable = scores.isfinite()
    count = torch.bincount(own, weights=readable.double(), minlength=len(ids))
    mean = torch.bincount(own, weights=scores.nan_to_num(), minlength=len(ids)) / count
    squares = torch.where(readable, (scores - mean[own]) ** 2, 0.0)
    variance = torch.bincount(own, weights=squares, minlength=len(ids)) / (count - 1).clamp_min(1)
    return GroupStatistics(own, mean, variance, label)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    total = torch.where(counted, values.nan_to_num(), 0.0).sum(dim=1)
    return total / counted.sum(dim=1).clamp_min(1)
