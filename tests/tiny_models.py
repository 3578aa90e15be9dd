"""Tiny random models of the real architectures, saved to disk as users' own would be."""

from pathlib import Path

import torch

from reward_model.toy_world import moving_shapes
from tests.tiny_wan import build_wan

RECIPE = {
    "run.seed": 3,
    "run.device": "cpu",
    "generator.num_frames": 5,
    "generator.height": 16,
    "generator.width": 16,
    "generator.fps": 8.0,
    "generator.lora_rank": 2,
    "generator.lora_alpha": 4,
    "generator.max_sequence_length": 8,
    "prompts.world": "moving_shapes",
    "prompts.num_held_out": 4,
    "objective.name": "nft",
    "objective.num_updates": 2,
    "objective.samples_per_group": 2,
    "loop.num_rounds": 2,
    "loop.num_iterations": 2,
    "sampling.num_prompts": 2,
    "sampling.group_size": 3,
    "sampling.num_steps": 2,
    "refresh.num_prompts": 2,
    "refresh.num_steps": 2,
    "refresh.batch_size": 4,
    "refresh.anchors.num_train": 6,
    "refresh.anchors.num_held_out": 8,
    "evaluation.num_seeds": 2,
    "evaluation.num_round_prompts": 2,
    "evaluation.num_probes": 2,
    "evaluation.num_samples": 2,
    "evaluation.num_resamples": 20,
}
"""Settings of a whole run within a few seconds."""


def save_tiny_wan(folder: Path) -> Path:
    """Write a random Wan pipeline: 5 frames of 16 x 16."""
    build_wan().save_pretrained(folder)
    return folder


def save_tiny_judge(folder: Path, *, family: str = "qwen2_5_vl", roles: tuple[str, ...] = ("generated",)) -> Path:
    """Write a random judge that speaks of moving shapes, with a random adapter for each role."""
    from reward_model.judge.checkpoints.format import JudgeConfig
    from reward_model.judge.families.tiny import build_tiny, build_tokenizer
    from reward_model.judge.model import VideoJudge

    words = build_tokenizer(moving_shapes.caption(scene) for scene in moving_shapes.CORE.scenes())
    model, tokenizer = build_tiny(
        family, hidden=64, layers=2, vision_hidden=32, vision_layers=2, patch_size=8, tokenizer=words, init_std=0.1
    )
    policy = {"mode": "all", "max_frames": 8}
    config = JudgeConfig.for_model(model.config, min_pixels=32 * 32, max_pixels=32 * 32, frame_policy=policy)
    judge = VideoJudge(model, tokenizer, config)
    _speak_levels(judge)
    if "comparator" in roles:
        speak_choices(judge)
    for number, role in enumerate(roles):
        judge.add_role(role, rank=2, alpha=4)
        stream = torch.Generator().manual_seed(number)
        for parameter in judge.train_only(role):
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=stream)
    judge.save_pretrained(folder)
    return folder


def _speak_levels(judge) -> None:
    """Make the level words likely, as training would: a judge that says something else gives no valid score."""
    from reward_model.language.requests import score_request
    from reward_model.records import DIMENSIONS

    _speak(judge, judge.level_ids, score_request(_noise(), "a red ring", DIMENSIONS))


def speak_choices(judge) -> None:
    """Make the words of a comparison likely, as training would."""
    from reward_model.language.requests import compare_request

    _speak(judge, judge.preference_ids, compare_request(_noise(), _noise(), "a red ring"))


def _noise():
    """Return a clip of noise."""
    from reward_model.records import Clip, FramePlan

    plan = FramePlan(indices=(0, 1, 2, 3), times=(0.0, 0.1, 0.2, 0.3), kinds=("slow",) * 4, fps=8.0)
    return Clip(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(9)), plan)


def _speak(judge, ids, request) -> None:
    """Raise the logits of some tokens behind a request."""
    head, words = judge.model.lm_head.weight, list(ids)
    logits = judge.next_token_logits([request])[0]
    (slope,) = torch.autograd.grad(logits[:, words[0]].mean(), head)  # row of the first word: the mean hidden state
    with torch.no_grad():
        head[words] += 12 * slope[words[0]] / slope[words[0]].square().sum()
