"""Pure rewards of GRPO, one formula of a paper each, and how a recipe names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from reward_model.records import RewardValues
from reward_model.rewards.accuracy import absolute, bell, choice, relative, threshold
from reward_model.rewards.base import Reward
from reward_model.rewards.form import length, readable
from reward_model.rewards.ranking import RankingReward
from reward_model.rewards.temporal import TemporalReward

__all__ = ["REWARDS", "RewardConfig", "build_rewards"]

REWARDS: Mapping[str, Callable[..., Reward]] = {
    "format": lambda: readable,
    "absolute": absolute,
    "relative": relative,
    "threshold": threshold,
    "bell": bell,
    "choice": lambda: choice,
    "length": length,
    "ranking": RankingReward,
    "temporal": lambda **settings: TemporalReward(accuracy=absolute(), **settings),
}
"""Name -> factory, whose keyword arguments are the reward's settings."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """One term of a stage's reward."""

    kind: Literal["reason", "compare", "ask"]
    """Kind of question whose answers it rewards."""
    name: str
    """Which reward."""
    weight: float = 1.0
    """Factor in the sum of all terms of the kind."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that reward."""

    def __post_init__(self) -> None:
        """Check the name and the settings."""
        if self.name not in REWARDS:
            raise ValueError(f"rewards: name must be one of {', '.join(REWARDS)}, got {self.name!r}")
        try:
            REWARDS[self.name](**self.settings)
        except TypeError as error:
            raise ValueError(f"rewards: settings of {self.name!r}: {error}") from error


def build_rewards(terms: Sequence[RewardConfig]) -> dict[str, Reward]:
    """Return kind of question -> the weighted sum of its terms, with each term's part in the breakdown."""
    kinds = dict.fromkeys(term.kind for term in terms)
    return {kind: _weighted([term for term in terms if term.kind == kind]) for kind in kinds}


def _weighted(terms: Sequence[RewardConfig]) -> Reward:
    parts = [(term.weight, REWARDS[term.name](**term.settings)) for term in terms]

    def reward(answers: Any, labels: Any, groups: Any, *, perturbed: Any = None) -> RewardValues:
        found = [(weight, part(answers, labels, groups, perturbed=perturbed)) for weight, part in parts]
        breakdown = {name: values for _, one in found for name, values in one.breakdown.items()}
        values = torch.stack([weight * one.values for weight, one in found]).sum(dim=0)
        return RewardValues(values, breakdown)

    return reward
