"""Qwen2-VL: as Qwen2.5-VL, but that frame groups count up by one, whatever the time between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from reward_model.judge.families.base import Grid, ProcessorNames, VideoSpan, VisionFacts, after_maximum, merged
from reward_model.judge.families.qwen2_5_vl import CLIP_PIXELS, Qwen25VL
from reward_model.records import FramePlan

TEXT_RULE = "text"
"""Rule of VideoReward, whose forward call leaves the library's positions out: video tokens count up like text."""

SERVER_RULE = "mrope_groups_then_maximum"
"""Rule of vLLM and SGLang: text goes on after the largest position on any axis."""


@dataclass(frozen=True)
class Qwen2VL(Qwen25VL):
    """The family's facts and forward calls; `min_pixels` and `max_pixels` bound one resized frame."""

    display_name: ClassVar[str] = "Qwen2-VL"
    processors: ClassVar[ProcessorNames] = ProcessorNames(
        "Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"
    )
    position_rules: ClassVar[tuple[str, ...]] = ("mrope_groups_then_longer_side", TEXT_RULE, SERVER_RULE)
    server_rule: ClassVar[str] = SERVER_RULE

    @classmethod
    def of(cls, config: Any, min_pixels: int, max_pixels: int, position_rule: str) -> Qwen2VL:
        """Read the facts from a model's config."""
        return cls(VisionFacts.of(config, *CLIP_PIXELS), min_pixels, max_pixels, 0.0, position_rule)

    @staticmethod
    def scratch_config(
        text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any], ids: Mapping[str, int]
    ) -> Any:
        """Return the config of a small model; its vision tower has full attention everywhere."""
        from transformers import Qwen2VLConfig

        shape = {name: vision[name] for name in ("depth", "num_heads", "patch_size")}
        width, inner = vision["hidden_size"], vision["intermediate_size"]
        shape |= {"embed_dim": width, "mlp_ratio": inner // width, "hidden_size": vision["out_hidden_size"]}
        return Qwen2VLConfig(
            text_config={**text, "rope_parameters": rope}, vision_config=shape, tie_word_embeddings=True, **ids
        )

    def video_spans(self, plan: FramePlan, grid: Grid) -> list[VideoSpan]:
        """Return the clip's one span, or none where video tokens count up like text."""
        if self.position_rule == TEXT_RULE:
            return []
        shown = merged(grid, self.facts)
        return [after_maximum(shown, 1.0) if self.position_rule == SERVER_RULE else (shown, 1.0)]
