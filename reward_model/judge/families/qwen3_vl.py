"""Qwen3-VL: a pixel budget per clip, a time stamp before each frame pair, and video features added in deep text layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from reward_model.judge.attention.tree import AttentionSpans
from reward_model.judge.families.base import (
    Grid,
    ProcessorNames,
    VideoSpan,
    VisionFacts,
    VisionFeatures,
    bounded_size,
    merged,
)
from reward_model.records import FramePlan

UNWRAPPED_RULE = "mrope_unwrapped_stamps_then_longer_side"
"""Rule of judges that were trained by transformers 4.57, whose processor put the stamped groups in place of the whole of
start, video token and end, as vLLM's own replacement does (vllm/model_executor/models/qwen3_vl.py). Text after
one frame group goes on at the same position under either rule."""

HALF = (0.5, 0.5, 0.5)
"""Mean and deviation of the channels."""


@dataclass(frozen=True)
class Qwen3VL:
    """The family's facts and forward calls; `min_pixels` and `max_pixels` bound all frames of a resized clip together."""

    display_name: ClassVar[str] = "Qwen3-VL"
    default_pixels: ClassVar[tuple[int, int]] = (128 * 32 * 32, 768 * 32 * 32)
    """Least and most pixels of a clip."""
    position_rules: ClassVar[tuple[str, ...]] = ("mrope_stamps_then_longer_side", UNWRAPPED_RULE)
    server_rule: ClassVar[str] = UNWRAPPED_RULE
    processors: ClassVar[ProcessorNames] = ProcessorNames(
        "Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor"
    )

    facts: VisionFacts
    min_pixels: int
    max_pixels: int
    position_rule: str
    """Each frame group is a grid of its own behind its time stamp, with or without an outer start and end around all groups;
    text goes on after the longer merged side."""

    @classmethod
    def of(cls, config: Any, min_pixels: int, max_pixels: int, position_rule: str) -> Qwen3VL:
        """Read the facts from a model's config."""
        return cls(VisionFacts.of(config, mean=HALF, std=HALF), min_pixels, max_pixels, position_rule)

    @staticmethod
    def counted_frames(num_frames: int) -> int:
        """Return the frames of a clip, filled up to pairs: all share the pixel bounds."""
        return num_frames + num_frames % 2

    @staticmethod
    def scratch_config(
        text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any], ids: Mapping[str, int]
    ) -> Any:
        """Return the config of a small model whose first vision layer adds features in the text model."""
        from transformers import Qwen3VLConfig

        head = text["hidden_size"] // text["num_attention_heads"]
        return Qwen3VLConfig(
            text_config={**text, "head_dim": head, "rope_parameters": {**rope, "mrope_interleaved": True}},
            vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
            tie_word_embeddings=True,
            **ids,
        )

    def size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a clip is resized to; longer clips get smaller frames."""
        factor, pair = self.facts.factor, self.facts.temporal_patch_size
        num_frames = max(num_frames, pair)
        if height < factor or width < factor:
            grow = max(factor / height, factor / width)
            height, width = int(height * grow), int(width * grow)
        bounds, counted = (self.min_pixels, self.max_pixels), round(num_frames / pair) * pair
        return bounded_size(height, width, factor, bounds, num_frames=num_frames, counted_frames=counted)

    def placeholder(self, plan: FramePlan, grid: Grid) -> str:
        """Return per frame group its mean time and its tokens between start and end, all between an outer start and end.

        Source: Qwen3VLProcessor of transformers 5.23, `replace_video_token`; that of 4.57 leaves the outer start and end out.
        """
        pair = self.facts.temporal_patch_size
        times = [*plan.times, *[plan.times[-1]] * (-len(plan.times) % pair)]
        stamps = [(times[i] + times[i + pair - 1]) / 2 for i in range(0, len(times), pair)]
        pads = "<|video_pad|>" * math.prod(merged(grid, self.facts)[1:])
        groups = "".join(f"<{stamp:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for stamp in stamps)
        return groups if self.position_rule == UNWRAPPED_RULE else f"<|vision_start|>{groups}<|vision_end|>"

    def video_spans(self, plan: FramePlan, grid: Grid) -> list[VideoSpan]:
        """Return one span per frame group; time stands in the stamps, not in the positions."""
        groups, lines, columns = merged(grid, self.facts)
        return [((1, lines, columns), 1.0)] * groups

    def encode(self, model: Any, patches: Tensor, grids: Tensor) -> VisionFeatures:
        """Run the vision tower once over all clips."""
        features = model.model.get_video_features(patches, grids, return_dict=True)
        deep = tuple(torch.cat(layer) for layer in features.deepstack_features)
        return VisionFeatures(torch.cat(features.pooler_output), deep)

    def text(
        self,
        model: Any,
        embeddings: Tensor,
        positions: Tensor,
        spans: AttentionSpans,
        *,
        deep: tuple[Tensor, ...] = (),
        video_mask: Tensor | None = None,
        cache: object | None = None,
    ) -> Tensor:
        """Run the text model; layer k adds `deep[k]` at the video tokens."""
        output = model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=spans.mask,
            past_key_values=cache,
            use_cache=cache is not None,
            spans=spans,
            visual_pos_masks=video_mask if deep else None,
            deepstack_visual_embeds=list(deep) or None,
        )
        return output.last_hidden_state
