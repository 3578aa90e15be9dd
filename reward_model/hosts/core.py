"""Shared by all hosts: a judge that is loaded once, frames in the judge's format, scores as Python floats.

Shapes: B videos, T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from reward_model.video_reward import VideoJudgeReward

if TYPE_CHECKING:
    from reward_model.media.intake import VideoLike
    from reward_model.records import RewardOutput

ReturnT = TypeVar("ReturnT")
JudgeLike = VideoJudgeReward | str | Path
"""A judge, or what `VideoJudgeReward.from_pretrained` loads: a folder, a hub id, or "toy" for the embedded one."""

OVERSHOOT = 0.5
"""Largest distance from [-1, 1] at which a decoder's output is clamped, not refused; frames in 0..255 lie further out."""


@dataclass(frozen=True)
class HostScores:
    """Scores of B videos.

    Attributes:
        rewards: B; NaN where the reward is missing.
        scores: dimension -> B; NaN where the score is missing.
        reasons: B; why the reward is missing, empty where it is not.
    """

    rewards: list[float]
    scores: dict[str, list[float]]
    reasons: list[str]

    def or_raise(self, advice: str = "") -> HostScores:
        """Return these scores; raise if a reward is missing, for hosts that have no value for that.

        Args:
            advice: last sentence of the error message.

        Returns:
            The same scores.

        Raises:
            RuntimeError: a reward is missing.
        """
        missing = [f"video {index}: {reason}" for index, reason in enumerate(self.reasons) if reason]
        if missing:
            total = len(self.reasons)
            raise RuntimeError(f"{len(missing)} of {total} rewards are unavailable: {'; '.join(missing)}. {advice}")
        return self


_LOADING = Lock()


def load_judge(
    judge: JudgeLike, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> VideoJudgeReward:
    """Return a judge; repeated calls with the same path, device and dtype return the same object.

    Args:
        judge: a loaded judge, which is returned as it is, or the place to load one from.
        device: device to load it on; None as in `VideoJudge.from_pretrained`.
        dtype: dtype of the weights; "auto" keeps the stored one.

    Returns:
        The judge; frozen if it was loaded here.
    """
    if not isinstance(judge, (str, Path)):
        return judge
    with _LOADING:  # hosts call from many threads, and memory holds a large judge only once
        return _loaded(str(judge), str(device) if device is not None else None, dtype)


@functools.cache
def _loaded(path: str, device: str | None, dtype: str | torch.dtype) -> VideoJudgeReward:
    return VideoJudgeReward.from_pretrained(path, device=device, dtype=dtype)


def score(
    judge: VideoJudgeReward,
    videos: Tensor | Sequence[VideoLike],
    prompts: str | Sequence[str | None] | None,
    *,
    fps: float | None,
    layout: str = "BTCHW",
    weights: Mapping[str, float] | None = None,
) -> HostScores:
    """Score B videos without gradient.

    Args:
        judge: the judge.
        videos: as in a call of the judge; a tensor [B, C, H, W] holds stills, scored as clips of one frame.
        prompts: one per video, or one for all.
        fps: frame rate in Hz of tensors and PIL lists.
        layout: axes of tensors.
        weights: dimension -> weight of the reward; None for overall.

    Returns:
        The scores.
    """
    if isinstance(videos, Tensor) and layout == "BTCHW":
        videos = with_time(videos)
    return scores_of(judge(videos, prompts, fps=fps, layout=layout, weights=weights), weights)


def scores_of(out: RewardOutput, weights: Mapping[str, float] | None) -> HostScores:
    """Convert a judge's output, whose rewards were computed with these weights, to Python floats."""
    rewards = out.rewards.tolist()
    return HostScores(
        rewards=rewards,
        scores={name: values.tolist() for name, values in out.scores.items()},
        reasons=["" if math.isfinite(value) else _reason(out, index, weights) for index, value in enumerate(rewards)],
    )


def _reason(out: RewardOutput, index: int, weights: Mapping[str, float] | None) -> str:
    names = weights if weights is not None else out.reasons
    return next((out.reasons[name][index] for name in names if out.reasons[name][index]), "no finite score")


def with_time(frames: Tensor) -> Tensor:
    """Return stills [B, C, H, W] as clips of one frame [B, 1, C, H, W]; clips are returned unchanged."""
    return frames.unsqueeze(1) if frames.ndim == 4 else frames


def from_signed(frames: Tensor) -> Tensor:
    """Map frames from [-1, 1] to [0, 1], keeping the gradient; values up to `OVERSHOOT` outside are clamped.

    Args:
        frames: any shape.

    Returns:
        The same shape in [0, 1].

    Raises:
        ValueError: values further outside [-1, 1], or not finite.
    """
    low, high = frames.detach().amin().item(), frames.detach().amax().item()
    if not (low >= -1 - OVERSHOOT and high <= 1 + OVERSHOOT):
        raise ValueError(f"frames must lie in [-1, 1], got [{low:.3g}, {high:.3g}]; pass the decoder's own output")
    return ((frames + 1) / 2).clamp(0, 1)


def in_thread(function: Callable[..., ReturnT]) -> Callable[..., Coroutine[Any, Any, ReturnT]]:
    """Return a coroutine function that runs `function` in a thread, for hosts that await rewards."""

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> ReturnT:
        """Run the function in a thread and wait for it."""
        return await asyncio.to_thread(function, *args, **kwargs)

    return call
