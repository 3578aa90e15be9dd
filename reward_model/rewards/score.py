"""Rewards for scores near their labels, over one dimension or the weighted mean of several.

Shapes: N answers. Scores and labels stand on the scale 1 to 5.

Source: VQ-Insight (arXiv 2506.18564), score rewards, and xuanyuzhang21/VQ-Insight, src/r1-v/src/open_r1/grpo.py and
grpo_md_aigc.py, commit 76b7148; Q-Insight (arXiv 2503.22679), score reward; VQAThinker (arXiv 2508.06051) and
clh124/VQAThinker, train/src/open-r1-multimodal/src/open_r1/grpo_jsonl.py, commit ee47a40.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from torch import Tensor

from reward_model.records import Answer, Label, RewardValues
from reward_model.rewards.base import SCALE, SCALE_WIDTH, Perturbed, check_variant, label_of, number_of, values_of

Dimensions = str | Mapping[str, float] | None
"""One dimension; or dimension -> weight, read for the rated dimensions of a clip; None weighs all rated ones alike."""

Parse = Literal["released", "corrected"]
"""released: an answer earns 0 unless all its scores are readable. corrected: readable scores earn their share."""


@dataclass(frozen=True, kw_only=True)
class ScoreReward:
    """The weighted mean over dimensions of how near each score is to its label."""

    nearness: Callable[[str, float], float]
    """(score as it stands in the text, label) -> [0, 1], 1 where they agree."""
    dimensions: Dimensions = None
    """Needed scores and their weights."""
    parse: Parse = "released"
    """Reward of an answer with only some readable scores."""

    def __post_init__(self) -> None:
        """Check the weights and the way of parsing."""
        check_variant(self.parse, ("released", "corrected"))
        if isinstance(self.dimensions, Mapping) and not (
            self.dimensions and all(weight > 0 for weight in self.dimensions.values())
        ):
            raise ValueError(f"dimensions must name at least one weight, all > 0, got {dict(self.dimensions)}")

    def __call__(
        self, answers: Sequence[Answer], labels: Sequence[Label], groups: Tensor, *, perturbed: Perturbed | None = None
    ) -> RewardValues:
        """Return the rewards in [0, 1].

        Args:
            answers: with their `scores`.
            labels: with the labels of the dimensions.
            groups: [N], not read.
            perturbed: not read.

        Returns:
            The rewards; "unparsed" is the weight of the unreadable scores.
        """
        earned = [self._one(answer, label) for answer, label in zip(answers, labels, strict=True)]
        return values_of([value for value, _ in earned], [lost for _, lost in earned])

    def _one(self, answer: Answer, label: Label) -> tuple[float, float]:
        weights = self._weights(label)
        read = [name for name in weights if math.isfinite(number_of(answer, name))]
        if self.parse == "released" and (answer.fault or len(read) < len(weights)):
            return 0.0, 1.0
        total = sum(weights.values())
        near = sum(weights[name] * self.nearness(answer.scores[name], label.scores[name]) for name in read)
        return near / total, 1 - sum(weights[name] for name in read) / total

    def _weights(self, label: Label) -> dict[str, float]:
        if isinstance(self.dimensions, str):
            label_of(label, self.dimensions)
            return {self.dimensions: 1.0}
        weights = dict.fromkeys(label.scores, 1.0) if self.dimensions is None else self.dimensions
        rated = {name: weight for name, weight in weights.items() if name in label.scores}
        if not rated:
            label_of(label, next(iter(weights), "any dimension"))
        return rated


def absolute(*, dimensions: Dimensions = None, parse: Parse = "released") -> ScoreReward:
    """Return the reward 1 - |score - label| / 4, not below 0: the l1 form of VQ-Insight's paper, on the unit scale."""

    def nearness(score: str, label: float) -> float:
        """Return 1 minus the share of the scale between them."""
        return max(0.0, 1 - abs(float(score) - label) / SCALE_WIDTH)

    return ScoreReward(nearness=nearness, dimensions=dimensions, parse=parse)


def relative(
    *, scale: Sequence[float] = SCALE, dimensions: Dimensions = None, parse: Parse = "released"
) -> ScoreReward:
    """Return the reward 1 - (|score - label| + 1e-9) / (|label| + 1e-9), not below 0: VQ-Insight's released code.

    An error relative to the label depends on the scale that both stand on: a label of 10 on 0 to 100 is 1.4 on 1 to 5, and a
    score that is twice as high earns 0 there and 0.71 here. On 1 to 5 the same error costs a bad clip up to five times what
    it costs an excellent one. `absolute` does not depend on the scale.

    Args:
        scale: lowest and highest value of the scale on which the error is taken; scores and labels, which stand on 1 to 5,
            are mapped onto it. The released code's is that of the data set's own labels.
        dimensions: needed scores.
        parse: reward of an answer with only some readable scores.

    Returns:
        The reward.

    Raises:
        ValueError: A scale that is not two finite numbers, the lower first.
    """
    if len(scale) != 2 or not all(math.isfinite(end) for end in scale) or not scale[0] < scale[1]:
        raise ValueError(f"scale must be the lowest and the highest value, finite and ascending, got {list(scale)}")
    low, width = scale[0], scale[1] - scale[0]
    own = (low, scale[1]) == SCALE  # numbers on their own scale are taken as they stand, not rounded on the way

    def placed(number: float) -> float:
        """Return a number of the scale 1 to 5 on the other scale."""
        return number if own else low + width * (number - SCALE[0]) / SCALE_WIDTH

    def nearness(score: str, label: float) -> float:
        """Return 1 minus the error relative to the label."""
        value, goal = placed(float(score)), placed(label)
        return 1 - min(1.0, (abs(value - goal) + 1e-9) / (abs(goal) + 1e-9))

    return ScoreReward(nearness=nearness, dimensions=dimensions, parse=parse)


def threshold(*, tolerance: float = 0.35, dimensions: Dimensions = None, parse: Parse = "released") -> ScoreReward:
    """Return the reward 1 where |score - label| < `tolerance` (on the scale 1 to 5), else 0: Q-Insight's."""

    def nearness(score: str, label: float) -> float:
        """Return 1 within the tolerance, else 0."""
        return float(abs(float(score) - label) < tolerance)

    return ScoreReward(nearness=nearness, dimensions=dimensions, parse=parse)


def bell(
    *,
    sigma: float = 0.5,
    decimals_factor: float = 0.8,
    num_decimals: int = 2,
    variant: Literal["released", "corrected"] = "corrected",
    dimensions: Dimensions = None,
    parse: Parse = "released",
) -> ScoreReward:
    """Return the reward exp(-(score - label)^2 / (2 sigma^2)), lowered for too few decimals: VQAThinker's.

    Args:
        sigma: width on the scale 1 to 5; beyond three sigma the reward is flat.
        decimals_factor: factor of a score with fewer than `num_decimals` decimals; 1 asks for none.
        num_decimals: decimals asked for.
        variant: how decimals are counted. released: in the number, so without trailing zeros, and 3.50 has one. corrected:
            as written, and 3.50 has two.
        dimensions: needed scores.
        parse: reward of an answer with only some readable scores.

    Returns:
        The reward.

    Raises:
        ValueError: Unknown variant, or a width that is not positive.
    """
    check_variant(variant, ("released", "corrected"))
    if sigma <= 0:
        raise ValueError(f"sigma must be > 0, got {sigma}")

    def nearness(score: str, label: float) -> float:
        """Return the bell, lowered for too few decimals."""
        factor = 1.0 if count_decimals(score, written=variant == "corrected") >= num_decimals else decimals_factor
        return factor * math.exp(-((float(score) - label) ** 2) / (2 * sigma**2))

    return ScoreReward(nearness=nearness, dimensions=dimensions, parse=parse)


def count_decimals(text: str, *, written: bool) -> int:
    """Return how many decimals a finite number has: as `written`, or in its value, without trailing zeros."""
    number = Decimal(text) if written else Decimal(text).normalize()
    return max(0, -int(number.as_tuple().exponent))
