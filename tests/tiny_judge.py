"""Tiny random judges of the real architectures, clips for them, and plain teacher forcing to compare with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_model.judge.checkpoints.format import JudgeConfig
from reward_model.judge.engine.batching import AnswerText, clip_grid, patches_of
from reward_model.judge.families.tiny import build_tiny
from reward_model.judge.model import VideoJudge
from reward_model.records import Clip, FramePlan, JudgeRequest

FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def build_judge(family: str = "qwen2_5_vl", **changes: int) -> VideoJudge:
    """Return a judge of some 100 thousand parameters whose logits depend visibly on its pixels."""
    size = {"hidden": 64, "layers": 2, "vision_hidden": 32, "vision_layers": 2, "patch_size": 8, "init_std": 0.1}
    model, tokenizer = build_tiny(family, **{**size, **changes})
    return VideoJudge(model, tokenizer, JudgeConfig.for_model(model.config, min_pixels=1024, max_pixels=40_000))


def make_clip(num_frames: int = 4, height: int = 32, width: int = 32, fps: float = 8.0, seed: int = 0) -> Clip:
    """Return a clip of noise."""
    frames = torch.rand(num_frames, 3, height, width, generator=torch.Generator().manual_seed(seed))
    times = tuple(i / fps for i in range(num_frames))
    return Clip(frames, FramePlan(tuple(range(num_frames)), times, ("slow",) * num_frames, fps))


def library_inputs(judge: VideoJudge, request: JudgeRequest, branch: str, answer: AnswerText = "") -> dict[str, Tensor]:
    """Return what the model's own forward takes for one whole sequence; the library finds the positions."""
    family, tokenizer = judge.family, judge.tokenizer
    text, clips = "", []
    for part in request.prefix:
        if isinstance(part, int):
            clips.append(request.clips[part])
            part = family.placeholder(clips[-1].plan, clip_grid(clips[-1], family))
        text += part
    ids = torch.tensor([tokenizer.encode(text) + tokenizer.encode(branch) + _ids(judge, answer)])
    parts = [patches_of([clip], family, quantise=True, device=torch.device("cpu")) for clip in clips]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == family.facts.video_token_id).int() * 2,
        "pixel_values_videos": torch.cat([patches for patches, _ in parts]),
        "video_grid_thw": torch.cat([grid for _, grid in parts]),
    }
    if judge.config.family == "qwen2_5_vl":
        pair = family.facts.temporal_patch_size
        inputs["second_per_grid_ts"] = torch.tensor([pair / clip.plan.fps for clip in clips])
    return inputs


def forced_log_probs(
    judge: VideoJudge, request: JudgeRequest, branch: str, answer: AnswerText, suppressed: Sequence[int] = ()
) -> Tensor:
    """Return the log-probs [L] of an answer by one plain forward of the whole sequence; `suppressed` tokens have probability 0."""
    inputs = library_inputs(judge, request, branch, answer)
    size = len(_ids(judge, answer))
    logits = judge.model(**inputs, use_cache=False).logits[0, -size - 1 : -1]
    logits = logits.index_fill(-1, torch.tensor(list(suppressed), dtype=torch.long), -torch.inf)
    return logits.log_softmax(-1).gather(-1, inputs["input_ids"][0, -size:, None])[:, 0]


def _ids(judge: VideoJudge, answer: AnswerText) -> list[int]:
    return judge.tokenizer.encode(answer) if isinstance(answer, str) else list(answer)
