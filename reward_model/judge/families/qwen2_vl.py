"""Qwen2-VL: as Qwen2.5-VL, but that frame groups count up by one, whatever the time between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from reward_model.judge.families.base import Grid, Run, VisionFacts, merged
from reward_model.judge.families.qwen2_5_vl import CLIP_PIXELS, Qwen25VL
from reward_model.records import FramePlan

TEXT_RULE = "text"
"""Rule of VideoReward, whose forward call leaves the library's positions out: video tokens count up like text."""


@dataclass(frozen=True)
class Qwen2VL(Qwen25VL):
    """The family's facts and forward calls; `min_pixels` and `max_pixels` bound one resized frame."""

    position_rules: ClassVar[tuple[str, ...]] = ("mrope_groups_then_longer_side", TEXT_RULE)

    @classmethod
    def of(cls, config: Any, min_pixels: int, max_pixels: int, position_rule: str) -> Qwen2VL:
        """Read the facts from a model's config."""
        return cls(VisionFacts.of(config, *CLIP_PIXELS), min_pixels, max_pixels, 0.0, position_rule)

    def runs(self, plan: FramePlan, grid: Grid) -> list[Run]:
        """Return the clip's one run, or none where video tokens count up like text."""
        return [] if self.position_rule == TEXT_RULE else [(merged(grid, self.facts), 1.0)]
