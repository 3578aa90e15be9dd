"""flow_grpo, DiffusionNFT and Flash-GRPO: a scoring function behind a name of `multi_score`.

In the host's `flow_grpo/rewards.py`:

    from reward_model.hosts.flow_grpo import reward_factory

    score_functions = {..., "video_judge": reward_factory("path/to/judge", fps=16)}  # in multi_score
    config.reward_fn = {"video_judge": 1.0}                                          # in the training configuration

The host calls the function from eight threads and adds up the results, so one missing reward would spoil the whole
batch: the function raises instead, and training stops.

Source: yifan123/flow_grpo, flow_grpo/rewards.py, commit 94e23ee (its `multi_score` takes `ref_images` as well; ac4c86e does not), and
scripts/train_wan2_1.py, commit 74db691; NVlabs/DiffusionNFT, commit 24af555; Shredded-Pork/Flash-GRPO,
scripts/train_wanx2_1_flash.py, commit 4211013.

Shapes: B videos, T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reward_model.hosts.core import JudgeLike, load_judge, score

RewardFunction = Callable[..., tuple[list[float], dict[str, list[float]]]]


def reward_factory(
    judge: JudgeLike, *, fps: float, weights: Mapping[str, float] | None = None
) -> Callable[[str | torch.device], RewardFunction]:
    """Return the factory that the host calls with its device.

    Args:
        judge: a judge, or where it is; loaded once per device, however often the host asks.
        fps: frame rate in Hz of the host's videos.
        weights: dimension -> weight of the reward; None for overall. For stills [B, C, H, W], which do not move, weight
            visual_quality and text_alignment.

    Returns:
        `factory(device) -> reward`, a plain function; the host recognises a factory by the argument name `device`.
    """

    def video_judge(device: str | torch.device) -> RewardFunction:
        """Return the reward with the judge on `device`."""
        loaded = load_judge(judge, device=device)

        def reward(
            videos: Tensor | Sequence[Any], prompts: Sequence[str], metadata: Any = None, only_strict: bool = True
        ) -> tuple[list[float], dict[str, list[float]]]:
            """Return the rewards and the scores of each dimension."""
            frames = videos if isinstance(videos, Tensor) else _frames_of_pair(videos)
            output = score(loaded, frames, list(prompts), fps=fps, weights=weights).or_raise()
            return output.rewards, output.scores

        return reward

    return video_judge


def _frames_of_pair(pair: Sequence[Any]) -> Tensor:
    """Return the frames of Flash-GRPO's pair [frames, mp4 paths]; unlike the files, they are not compressed."""
    if len(pair) != 2 or not isinstance(pair[0], Tensor):
        kinds = ", ".join(type(item).__name__ for item in pair)
        raise ValueError(f"videos must be a tensor [B, T, C, H, W] or a pair [tensor, paths], got [{kinds}]")
    return pair[0]
