"""VADER: a loss on decoded frames, whose gradient trains the generator.

Where the host's training script chooses its `loss_fn`:

    from reward_model.hosts.vader import reward_loss

    loss_fn = reward_loss("path/to/judge", fps=8, device=accelerator.device)
    loss, rewards = loss_fn(video_frames_, prompts[0])  # --decode_frame all: the judge sees the clip, not one frame

Source: mihirp1998/VADER, VADER-VideoCrafter/scripts/main/train_t2v_lora.py, commit adaf2ef.

Shapes: B videos, F frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, from_signed, load_judge, with_time


def reward_loss(
    judge: JudgeLike,
    *,
    fps: float,
    device: str | torch.device | None = None,
    target: float | None = None,
    scale: float = 1.0,
    space: Literal["expectation", "logit"] = "expectation",
    weights: Mapping[str, float] | None = None,
) -> Callable[[Tensor, str | Sequence[str]], tuple[Tensor, Tensor]]:
    """Return `loss_fn(frames, prompts) -> (loss, reward)`.

    Args:
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of the decoded frames.
        device: device to load it on.
        target: None minimises -reward; a number minimises |reward - target|.
        scale: factor of the loss.
        space: "expectation" or "logit"; see `VideoJudgeReward.as_loss`.
        weights: dimension -> weight of the reward; None for overall.

    Returns:
        The loss function. It takes the decoder's output in [-1, 1]: videos [B, F, C, H, W] with one prompt or B prompts,
        one video [F, C, H, W] with a string, or stills [B, C, H, W] with a list of prompts. Both results are scalars, the
        reward without gradient. It raises RuntimeError where a reward is missing.
    """
    loss = load_judge(judge, device=device).as_loss(target, scale=scale, space=space, weights=weights)

    def loss_fn(frames: Tensor, prompts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the loss with gradient and the mean reward, both scalars."""
        videos = from_signed(frames)
        one_video = videos.ndim == 4 and isinstance(prompts, str)
        value, rewards = loss(videos.unsqueeze(0) if one_video else with_time(videos), prompts, fps=fps)
        return value, rewards.mean()

    return loss_fn
