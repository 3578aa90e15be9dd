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
    "length_gated": partial(gated_length_bonus, accuracy=relative()),
    "temporal": partial(temporal_bonus, accuracy=absolute()),
    "temporal_ranking": partial(temporal_consistency, accuracy=RankingReward(), also=bell(), threshold=0.5),
    "temporal_bell": partial(temporal_consistency, accuracy=bell(), threshold=0.9),
}
"""Name -> factory, whose keyword arguments are the reward's settings."""

MEASURES = ("accuracy", "also")
"""Settings that are rewards themselves, by which another one measures answers: {"name": ..., "settings": {...}}."""


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
    """Settings of that reward; `accuracy` and `also`, where it has them, name another reward and its settings."""

    def __post_init__(self) -> None:
        """Check the name and the settings."""
        build_reward(self.name, self.settings)


def build_reward(name: str, settings: Mapping[str, Any]) -> AnswerReward:
    """Return a reward by its name and settings, of which those in `MEASURES` are rewards by name and settings again.

    Args:
        name: key of `REWARDS`.
        settings: keyword arguments of its factory.

    Returns:
        The reward.

    Raises:
        ValueError: An unknown name or setting, or a value out of range.
    """
    if name not in REWARDS:
        raise ValueError(f"rewards: name must be one of {', '.join(REWARDS)}, got {name!r}")
    built = dict(settings)
    for key in MEASURES:
        if key in built:
            one = built[key]
            if not isinstance(one, Mapping) or "name" not in one or set(one) - {"name", "settings"}:
                raise ValueError(f"rewards: {key} of {name!r} must hold a name and settings, got {one!r}")
            built[key] = build_reward(one["name"], one.get("settings", {}))
    try:
        return REWARDS[name](**built)
    except TypeError as error:
        raise ValueError(f"rewards: settings of {name!r}: {error}") from error


def build_rewards(terms: Sequence[RewardConfig]) -> dict[str, AnswerReward]:
    """Return kind of prompt -> the weighted sum of its terms; a repeated name gets a number ("bell#2")."""
    kinds: dict[str, dict[str, tuple[AnswerReward, float]]] = {}
    for term in terms:
        named = kinds.setdefault(term.kind, {})
        same = sum(name.partition("#")[0] == term.name for name in named)
        name = f"{term.name}#{same + 1}" if same else term.name
        named[name] = (build_reward(term.name, term.settings), term.weight)
    return {kind: weighted(named) for kind, named in kinds.items()}
