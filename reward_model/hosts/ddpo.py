"""DDPO and AlignProp of TRL up to 0.22: a reward for batches of images, or of videos in your own pipelines.

    from reward_model.hosts.ddpo import tuple_reward

    trainer = DDPOTrainer(config, tuple_reward("path/to/judge", fps=8), prompt_function, pipeline)
    trainer = AlignPropTrainer(config, tuple_reward("path/to/judge", fps=8, differentiable=True), prompt_function, pipeline)

Both trainers average the rewards, so a missing one raises.

Source: huggingface/trl 0.22, DDPOTrainer.compute_rewards and AlignPropTrainer.compute_rewards.

Shapes: B videos, T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, load_judge, scores_of, with_time

TupleReward = Callable[[Tensor, Sequence[str], Any], tuple[Tensor, dict[str, list[float]]]]


def tuple_reward(
    judge: JudgeLike,
    *,
    fps: float,
    differentiable: bool = False,
    weights: Mapping[str, float] | None = None,
    device: str | torch.device | None = None,
) -> TupleReward:
    """Return `f(images, prompts, prompt_metadata) -> (rewards, scores)`.

    Args:
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of videos.
        differentiable: keep the gradient from the rewards to the pixels, which AlignProp needs.
        weights: dimension -> weight of the reward; None for overall. For stills, which
            do not move, weight visual_quality and text_alignment.
        device: device to load the judge on; with several processes, each names its own.

    Returns:
        The reward function. It maps images [B, C, H, W] or videos [B, T, C, H, W] in [0, 1] to rewards [B] and the
        scores of each dimension. It raises RuntimeError where a reward is missing.
    """
    loaded = load_judge(judge, device=device)

    def reward(images: Tensor, prompts: Sequence[str], prompt_metadata: Any) -> tuple[Tensor, dict[str, list[float]]]:
        """Return rewards [B] and the scores of each dimension."""
        videos = with_time(images)
        out = loaded(videos, list(prompts), fps=fps, weights=weights, differentiable=differentiable)
        return out.rewards, scores_of(out, weights).or_raise().scores

    return reward
