"""DDPO and AlignProp as TRL had them up to 0.22: a reward of a batch of images, or of videos in pipelines of your own.

    from reward_model.hosts.ddpo import tuple_reward

    trainer = DDPOTrainer(config, tuple_reward("path/to/judge", fps=8), prompt_function, pipeline)
    trainer = AlignPropTrainer(config, tuple_reward("path/to/judge", fps=8, differentiable=True), prompt_function, pipeline)

Both trainers average what they are given, so that a missing reward raises.

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
    """Return `f(images, prompts, prompt_metadata) -> (rewards, parts)`.

    Args:
        judge: a judge, or where it is.
        fps: frame rate in Hz of videos.
        differentiable: keep the gradient from the rewards to the pixels, for AlignProp.
        weights: dimension -> weight of the reward; None for overall. Stills do not move: weigh visual_quality and
            text_alignment.
        device: where to load the judge; in a run of several processes, name each one's own.

    Returns:
        The reward function: images [B, C, H, W] or videos [B, T, C, H, W] in [0, 1] to rewards [B] and each dimension's
        scores. It raises RuntimeError where a reward could not be had.
    """
    loaded = load_judge(judge, device=device)

    def reward(images: Tensor, prompts: Sequence[str], prompt_metadata: Any) -> tuple[Tensor, dict[str, list[float]]]:
        """Return rewards [B] and each dimension's scores."""
        videos = with_time(images)
        out = loaded(videos, list(prompts), fps=fps, weights=weights, differentiable=differentiable)
        return out.rewards, scores_of(out, weights).or_raise().parts

    return reward
