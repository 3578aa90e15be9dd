"""miles_diffusion: a batched reward for `--custom-rm-path`, by a judge in the rollout process or by a served one.

The rollout process has no GPU of its own, so a large judge runs behind `video-judge serve`. In a module of your own, my_rewards.py:

    from reward_model.hosts.miles_diffusion import batched_reward
    from reward_model.serving.client import VideoJudgeClient

    video_judge = batched_reward(VideoJudgeClient("http://127.0.0.1:8000"), fps=16)

and on the host's command line; without a reward key the trainer gets the reward alone, and logs no dimensions:

    --custom-rm-path my_rewards.video_judge --reward-key reward

The host checks no reward, so a missing one raises, which ends the rollout before advantages are computed.

Source: radixark/miles_diffusion, miles/rollout/rm_hub/__init__.py, miles/rollout/sglang_diffusion_rollout.py and
miles/utils/types.py, commits 0695400, 019b606 and 097dbd4.

Shapes: T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from einops import rearrange
from torch import Tensor

from reward_model.hosts.core import JudgeLike, in_thread, load_judge, scores_of

if TYPE_CHECKING:
    from reward_model.records import RewardOutput

REWARD = "reward"
"""Key of the reward beside the scores of the dimensions."""

LAYOUTS = {3: ("C H W", "H W C"), 4: ("C T H W", "T C H W", "T H W C")}
"""Layouts of stills and videos, by their number of axes."""

Rewards = list[float] | list[dict[str, float]]


class RolloutSample(Protocol):
    """Fields of the host's sample that are read."""

    @property
    def prompt(self) -> str:
        """Return the prompt."""

    @property
    def generated_output(self) -> Tensor | None:
        """Return the video [C, T, H, W], [T, H, W, C] or [T, C, H, W], or the still [C, H, W] or [H, W, C]; in [0, 1] or uint8."""


def batched_reward(
    judge: JudgeLike | Callable[..., RewardOutput], *, fps: float, weights: Mapping[str, float] | None = None
) -> Callable[..., Coroutine[Any, Any, Rewards]]:
    """Return the coroutine function that the host awaits for every microgroup.

    Args:
        judge: a judge, where to load it from, or a client of a served one.
        fps: frame rate in Hz of the generated videos.
        weights: dimension -> weight of the reward; None for overall.

    Returns:
        `reward(args, samples)`. Its result is a number per sample; with `args.reward_key` a dict of the reward and the scores of
        all dimensions. It raises RuntimeError where a reward is missing, and ValueError for an output of another layout.
    """
    loaded = load_judge(judge) if isinstance(judge, (str, Path)) else judge

    def reward(args: Any, samples: Sequence[RolloutSample], **host: Any) -> Rewards:
        """Return one reward per sample."""
        if not samples:
            return []
        videos = [_frames(sample.generated_output, index) for index, sample in enumerate(samples)]
        out = loaded(videos, [sample.prompt or None for sample in samples], fps=fps, weights=weights)
        scores = scores_of(out, weights).or_raise("The rollout must not go on: the host would spread the NaN.")
        if not args.reward_key:
            return scores.rewards
        parts = {REWARD: scores.rewards, **scores.scores}
        if args.reward_key not in parts:
            raise ValueError(f"--reward-key must be one of {', '.join(parts)}, got {args.reward_key!r}")
        return [
            {name: values[index] for name, values in parts.items() if math.isfinite(values[index])}
            for index in range(len(samples))
        ]

    return in_thread(reward)


def _frames(output: Tensor | None, index: int) -> Tensor:
    """Return frames [T, C, H, W] of a generated output, whose layout must be plain from its 3 channels."""
    if output is None:
        raise ValueError(f"sample {index} has no generated_output")
    if output.ndim == 5 and len(output) == 1:
        output = output[0]
    found = [layout for layout in LAYOUTS.get(output.ndim, ()) if output.shape[layout.split().index("C")] == 3]
    if len(found) != 1:
        kind = f"could be {' or '.join(found)}" if found else "has no axis of 3 channels"
        raise ValueError(f"sample {index}: generated_output {list(output.shape)} {kind}; expected [C, T, H, W]")
    if output.ndim == 3:
        return rearrange(output, f"{found[0]} -> 1 C H W")
    return rearrange(output, f"{found[0]} -> T C H W")
