"""The contract of a reward column: a number for each clip beside the judge's dimensions, by another readout or role.

Shape legend: B = prompts x group size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from generator_loop.records import Rollout

if TYPE_CHECKING:
    from reward_model.video_reward import VideoJudgeReward


@dataclass(frozen=True, kw_only=True)
class ColumnConfig:
    """Base of every column's config, whose first field is `name`."""

    name: str
    """Chooses the column; the key in `reward.columns` where it is not given."""
    role: str
    """Adapter of the judge that is asked."""
    weight: float = 0.0
    """Factor in the sum of rewards; 0 keeps the column for objectives that choose pairs by it (`objective.pair_by`)."""


class RewardColumn(Protocol):
    """One more number for each clip; built with its config, the judge, the frame rate and the judge's batch size."""

    config_class: ClassVar[type[Any]]

    def __init__(self, config: Any, judge: VideoJudgeReward, *, fps: float, batch_size: int) -> None: ...

    def values(self, samples: Rollout) -> Tensor:
        """Return a value for each clip.

        Args:
            samples: this process's groups.

        Returns:
            [B], higher is better; NaN where there is none.
        """
        ...
