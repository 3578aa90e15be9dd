"""Qwen2.5-VL: a pixel budget per frame, one block of video tokens per clip, positions spaced by the clip's seconds."""

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
    after_maximum,
    bounded_size,
    merged,
)
from reward_model.records import FramePlan

MAXIMUM = "then_maximum"
"""Ending of the rules by which text goes on after the largest position on any axis."""

RELEASED_RULE = "mrope_two_fps_then_maximum"
"""Rule of judges that were trained by transformers 4 without telling the processor the clips' frame rate."""

SPACING_RULE = "mrope_seconds_then_longer_side"
"""Rule of judges that were trained with the seconds between two shown frames, not with the source's seconds per shown frame as
the official processor counts: equal where all frames are shown, and further apart where they are sampled."""

SERVER_RULE = "mrope_sampled_seconds_then_maximum"
"""Rule of vLLM and SGLang: times as in transformers 5.23, and text goes on after the largest position on any axis.

Source: get_mrope_input_positions in vLLM's vllm/model_executor/models/qwen2_5_vl.py (commits 002d181 and newer), get_rope_index in
SGLang's python/sglang/srt/layers/rotary_embedding/mrope_rope_index.py. vLLM's newest code multiplies times in double precision, which
is another tick where a product in single precision rounds to a whole number.
"""

CLIP_PIXELS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the channels, those of CLIP."""


@dataclass(frozen=True)
class Qwen25VL:
    """The family's facts and forward calls; `min_pixels` and `max_pixels` bound one resized frame."""

    display_name: ClassVar[str] = "Qwen2.5-VL"
    default_pixels: ClassVar[tuple[int, int]] = (128 * 28 * 28, 768 * 28 * 28)
    """Least and most pixels of a frame."""
    position_rules: ClassVar[tuple[str, ...]] = (
        "mrope_sampled_seconds_then_longer_side",
        SPACING_RULE,
        RELEASED_RULE,
        SERVER_RULE,
    )
    server_rule: ClassVar[str] = SERVER_RULE
    processors: ClassVar[ProcessorNames] = ProcessorNames(
        "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"
    )

    facts: VisionFacts
    min_pixels: int
    max_pixels: int
    tokens_per_second: float
    position_rule: str
    """Time is in ticks of the source's seconds per shown frame (or of those between two, or as if every clip had 2 frames a
    second), and text goes on after the longer merged side or after the largest position on any axis."""

    @classmethod
    def of(cls, config: Any, min_pixels: int, max_pixels: int, position_rule: str) -> Qwen25VL:
        """Read the facts from a model's config."""
        return cls(
            VisionFacts.of(config, *CLIP_PIXELS),
            min_pixels,
            max_pixels,
            config.vision_config.tokens_per_second,
            position_rule,
        )

    @staticmethod
    def counted_frames(num_frames: int) -> int:
        """Return 1: each frame has the pixel bounds for itself."""
        return 1

    @staticmethod
    def scratch_config(
        text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any], ids: Mapping[str, int]
    ) -> Any:
        """Return the config of a small model with full attention in the middle and in the last vision layer."""
        from transformers import Qwen2_5_VLConfig

        depth, patch = vision["depth"], vision["patch_size"]
        return Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope},
            vision_config={**vision, "window_size": 8 * patch, "fullatt_block_indexes": [depth // 2, depth - 1]},
            tie_word_embeddings=True,
            **ids,
        )

    def size(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a clip is resized to; the number of frames does not matter."""
        return bounded_size(height, width, self.facts.factor, (self.min_pixels, self.max_pixels))

    def placeholder(self, plan: FramePlan, grid: Grid) -> str:
        """Return start, one video token per merged patch, end."""
        return f"<|vision_start|>{'<|video_pad|>' * math.prod(merged(grid, self.facts))}<|vision_end|>"

    def video_spans(self, plan: FramePlan, grid: Grid) -> list[VideoSpan]:
        """Return the clip's one span; its step is the ticks between two frame groups.

        Source: get_rope_index and `VideoMetadata.sampled_fps` of transformers 5.23; for the released rule get_rope_index of 4.51,
        whose processor takes 2 Hz for granted.
        """
        released = self.position_rule == RELEASED_RULE
        rate = plan.fps if self.position_rule == SPACING_RULE else plan.sampled_fps or plan.fps
        # float32 throughout, as the library rounds its time axis in float32
        seconds = torch.tensor(self.facts.temporal_patch_size / (2.0 if released else rate), dtype=torch.float32)
        shown, step = merged(grid, self.facts), float(self.tokens_per_second * seconds)
        return [after_maximum(shown, step) if self.position_rule.endswith(MAXIMUM) else (shown, step)]

    def encode(self, model: Any, patches: Tensor, grids: Tensor) -> VisionFeatures:
        """Run the vision tower once over all clips."""
        features = model.model.get_video_features(patches, grids, return_dict=True)
        return VisionFeatures(torch.cat(features.pooler_output), ())

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
        """Run the text model; this family adds nothing in deep layers."""
        output = model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": spans.mask, "sliding_attention": spans.mask},
            past_key_values=cache,
            use_cache=cache is not None,
            spans=spans,
        )
        return output.last_hidden_state
