"""Stock transformers as a judge: the library's own model, processor and `generate`, one whole prompt for every question."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.judge.attention import tree, windows
from reward_model.judge.engine.batching import clip_grid, patches_of
from reward_model.judge.model import VideoJudge
from reward_model.records import Clip, JudgeRequest

OWN_ATTENTION = (tree.NAME, windows.NAME)


class Stock:
    """The library's way: the whole prompt for every question."""

    def __init__(self, judge: VideoJudge, *, processed: bool) -> None:
        """Take the judge's model; `processed` makes pixels into patches by the library's processor, at every call."""
        self.judge, self.model = judge, as_released(judge.model)
        self.processor = _processor(judge) if processed else None

    def inputs(self, clip: Clip, text: str, patches: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
        """Return the model's inputs for one clip and one question."""
        facts = self.judge.family.facts
        if self.processor is not None:
            pixels = (clip.frames * 255).round().to(torch.uint8)
            processed = self.processor([pixels], return_tensors="pt", do_sample_frames=False)
            patches = processed["pixel_values_videos"], processed["video_grid_thw"]
        assert patches is not None
        ids = torch.tensor([self.judge.tokenizer.encode(text)], device=self.judge.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == facts.video_token_id).int() * 2,
            "pixel_values_videos": patches[0],
            "video_grid_thw": patches[1],
            "second_per_grid_ts": torch.tensor([facts.temporal_patch_size / clip.plan.fps]),
        }

    def logits(self, request: JudgeRequest, patches: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the last logits [D, V] by one forward pass per question; without `patches` they are made here, once."""
        if patches is None and self.processor is None:
            patches = patches_of(request.clips, self.judge.family, quantise=True, device=self.judge.device)
        clip, text = request.clips[0], stock_prefix(self.judge, request)
        logits = [
            self.model(**self.inputs(clip, text + branch, patches), logits_to_keep=1, use_cache=False).logits[0, -1]
            for branch in request.branches
        ]
        return torch.stack(logits)

    def generate(self, request: JudgeRequest, patches: tuple[Tensor, Tensor], num_tokens: int) -> None:
        """Let the library write a reasoned answer of a length."""
        clip, text = request.clips[0], stock_prefix(self.judge, request) + request.branches[0]
        how = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        self.model.generate(**self.inputs(clip, text, patches), **how)


def stock_prefix(judge: VideoJudge, request: JudgeRequest) -> str:
    """Return the text that all questions share, with the clip's video tokens."""
    before, _, after = request.prefix
    clip, family = request.clips[0], judge.family
    return f"{before}{family.placeholder(clip.plan, clip_grid(clip, family))}{after}"


def as_released(model: nn.Module) -> Any:
    """Return a copy with the library's own attention: a judge has put its own into the model it was given."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) in OWN_ATTENTION:
            config._attn_implementation = "sdpa"
    return copied


def _processor(judge: VideoJudge) -> Any:
    from transformers import Qwen2VLVideoProcessor

    config, facts = judge.config, judge.family.facts
    return Qwen2VLVideoProcessor(
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        patch_size=facts.patch_size,
        merge_size=facts.merge_size,
        temporal_patch_size=facts.temporal_patch_size,
    )
