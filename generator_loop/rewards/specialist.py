"""Reward column: the level readout of another role of the judge, such as the scorer of natural video.

Source: VQ-Insight (arXiv 2506.18564), stage 3, step 3: S = mean of the generated-video scores + beta x natural score.

Shape legend: B = prompts x group size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from generator_loop.records import Rollout
from generator_loop.rewards.column import ColumnConfig
from reward_model.records import DIMENSIONS

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward


@dataclass(frozen=True, kw_only=True)
class SpecialistConfig(ColumnConfig):
    """Config of a specialist."""

    name: Literal["specialist"] = "specialist"
    """Chooses this column."""
    dimensions: dict[str, float] = field(default_factory=lambda: {"overall": 1.0})
    """Dimension -> weight within the column."""

    def __post_init__(self) -> None:
        """Check the dimensions."""
        for name in self.dimensions:
            if name not in DIMENSIONS:
                raise ValueError(f"dimensions.{name} is no dimension; expected one of {', '.join(DIMENSIONS)}")


class Specialist:
    """Asks a role of the judge for its dimensions."""

    config_class: ClassVar[type[Any]] = SpecialistConfig

    def __init__(self, config: Any, judge: VideoJudgeReward, *, fps: float, batch_size: int) -> None:
        """Take the judge; ValueError if it has no such role."""
        self._config, self._judge = config, judge.with_role(config.role)
        self._fps, self._batch_size = fps, batch_size

    def values(self, samples: Rollout) -> Tensor:
        """Return the weighted sum [B] of the dimensions; see `RewardColumn.values`."""
        texts = [prompt.text for prompt in samples.prompts for _ in range(samples.group_size)]
        weights = dict(self._config.dimensions)
        with torch.no_grad():
            out = self._judge(samples.frames, texts, fps=self._fps, weights=weights, batch_size=self._batch_size)
        rewards: Tensor = out.rewards.float().cpu()
        return rewards
