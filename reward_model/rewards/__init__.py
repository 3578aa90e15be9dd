"""Pure rewards of GRPO: one formula of a paper each with its variants, and the table by which recipes name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from reward_model.rewards.base import AnswerReward, Perturbed
from reward_model.rewards.choice import choice
from reward_model.rewards.compose import from_trl, to_trl, weighted
from reward_model.rewards.format import format_reward
from reward_model.rewards.length import gated_length_bonus, length_bonus
from reward_model.rewards.ranking import RankingReward
from reward_model.rewards.score import absolute, bell, relative, threshold
from reward_model.rewards.temporal import temporal_bonus, temporal_consistency

__all__ = [
    "REWARDS",
    "Perturbed",
    "RankingReward",
    "AnswerReward",
    "RewardConfig",
    "absolute",
    "bell",
    "build_rewards",
    "choice",
    "format_reward",
    "from_trl",
    "gated_length_bonus",
    "length_bonus",
    "relative",
    "temporal_bonus",
    "temporal_consistency",
    "threshold",
    "to_trl",
    "weighted",
]

REWARDS: Mapping[str, Callable[..., AnswerReward]] = {
    "format": format_reward,
    "absolute": absolute,
    "relative": relative,
    "threshold": threshold,
    "bell": bell,
    "choice": lambda: choice,
    "ranking": RankingReward,
    "length": length_bonus,
    "length_gated": partial(gated_length_bonus, relative()),
    "temporal": partial(temporal_bonus, absolute()),
    "temporal_ranking": partial(temporal_consistency, RankingReward(), also=bell(), threshold=0.5),
    "temporal_bell": partial(temporal_consistency, bell(), threshold=0.9),
}
"""Name -> factory, whose keyword arguments are the reward's settings."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """One term of a stage's reward."""

    kind: Literal["reason", "compare", "ask"]
    """Kind of rollout prompt whose answers it rewards."""
    name: str
    """Name of the reward in `REWARDS`."""
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


def build_rewards(terms: Sequence[RewardConfig]) -> dict[str, AnswerReward]:
    """Return kind of prompt -> the weighted sum of its terms; a repeated name gets a number ("bell#2")."""
    kinds: dict[str, dict[str, tuple[AnswerReward, float]]] = {}
    for term in terms:
        named = kinds.setdefault(term.kind, {})
        same = sum(name.partition("#")[0] == term.name for name in named)
        name = f"{term.name}#{same + 1}" if same else term.name
        named[name] = (REWARDS[term.name](**term.settings), term.weight)
    return {kind: weighted(named) for kind, named in kinds.items()}
