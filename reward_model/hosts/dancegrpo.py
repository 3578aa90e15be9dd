"""DanceGRPO's Wan trainer: the reward of one clip at a time, which ends the run where there is none.

In `main` of the host's fastvideo/train_grpo_wan_2_1.py, behind the block of use_hpsv2, which is left off:

    from reward_model.hosts.dancegrpo import clip_reward

    reward_model = clip_reward("path/to/judge", fps=16, device=device)

and in sample_reference_model in place of that block:

    all_rewards.append(reward_model(decoded_video[0], batch_caption[0]))

The judge sees the decoder's frames at Wan's own rate; the mp4 files beside them are compressed and play at 24 Hz. The host
checks no reward: a NaN makes the advantages of its whole group NaN and, one step later, all weights. So a clip without a
score ends the process with its reason (`TrainingStop`) while the clips are sampled, and `torchrun` ends the other processes.

The trainers of HunyuanVideo and SkyReels take `video_align.py`.

Source: XueZeyue/DanceGRPO, fastvideo/train_grpo_wan_2_1.py, commit 15cc71d.

Shapes: T frames, H, W pixels, C = 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, load_judge, score

if TYPE_CHECKING:
    import numpy


def clip_reward(
    judge: JudgeLike,
    *,
    fps: float,
    device: str | int | torch.device | None = None,
    weights: Mapping[str, float] | None = None,
) -> Callable[[Tensor | numpy.ndarray, str], Tensor]:
    """Return `reward(frames, caption) -> reward`.

    Args:
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of the generated clips.
        device: device of judge and rewards; a number is that GPU, as the host names its own.
        weights: dimension -> weight of the reward; None for overall. For one frame (`--t 1`), which does not move, weight
            visual_quality and text_alignment.

    Returns:
        The reward function. It takes frames [T, H, W, C] in [0, 1] or uint8, as diffusers' video processor returns them, and
        gives a float32 tensor [1] on the device; it raises TrainingStop where the reward is missing.
    """
    loaded = load_judge(judge, device=f"cuda:{device}" if isinstance(device, int) else device)

    def reward(frames: Tensor | numpy.ndarray, caption: str) -> Tensor:
        """Return the reward of one clip, a tensor [1]."""
        output = score(loaded, [frames], [caption], fps=fps, layout="BTHWC", weights=weights)
        output.checked("stop", f"The clip's prompt is {caption!r}.")
        return torch.tensor(output.rewards, dtype=torch.float32, device=loaded.device)

    return reward
