"""FastVideo: a reward scorer inside its DiffusionNFT trainer; for its PromptRL trainer, `video-judge serve` is the service.

In build_multi_reward_scorer of the host's fastvideo/train/methods/rl/rewards/__init__.py, in place of its own scorers:

    from reward_model.hosts.fastvideo import reward_scorer
    available = {"video_judge": reward_scorer("path/to/judge", fps=16, device=device)}

among the known names in fastvideo/train/methods/rl/diffusion_nft.py:

    {"pickscore", "clipscore", "video_judge"}

and in the run's configuration:

    method:
      reward_fn: {video_judge: 1.0}

The host checks no reward, so a missing one raises before advantages are computed.

PromptRL uploads each clip as an mp4 file in a multipart form (no pickle) to an HTTP service, which on the judge's machine is

    video-judge serve --judge path/to/judge --port 8100 --fastvideo

and in the run's configuration, with the rate of the generated clips:

    method:
      reward: {endpoint_url: "http://127.0.0.1:8100", fps: 16}

There a clip without a score is answered 422 with its reason, upon which the trainer fails the step on all ranks.

Source: hao-ai-lab/FastVideo, fastvideo/train/methods/rl/diffusion_nft.py and rewards/, commit 2f3d407;
fastvideo/train/methods/rl/promptrl, commits b1b0372 and d98cc67, which its main branch lacks.

Shapes: B videos, C = 3 channels, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, load_judge, score


def reward_scorer(
    judge: JudgeLike,
    *,
    fps: float,
    device: str | torch.device | None = None,
    weights: Mapping[str, float] | None = None,
) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Return `scorer(media, prompts) -> rewards`.

    Args:
        judge: a judge, or where to load it from.
        fps: frame rate in Hz of the generated videos.
        device: device to load it on.
        weights: dimension -> weight of the reward; None for overall. For single frames (num_frames: 1), which do not move,
            weight visual_quality and text_alignment.

    Returns:
        The scorer. It takes the whole videos [B, C, T, H, W] or stills [B, C, H, W] in [0, 1], and gives float32 rewards [B] on
        the judge's device; it raises RuntimeError where a reward is missing, and ValueError for media of another kind.
    """
    loaded = load_judge(judge, device=device)

    def scorer(media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the rewards [B]."""
        if media.ndim not in (4, 5):
            raise ValueError(f"media must be [B, C, T, H, W] or [B, C, H, W], got {list(media.shape)}")
        videos = media if media.ndim == 5 else media.unsqueeze(2)
        output = score(loaded, videos, list(prompts), fps=fps, layout="BCTHW", weights=weights).or_raise()
        return torch.tensor(output.rewards, dtype=torch.float32, device=loaded.device)

    return scorer
