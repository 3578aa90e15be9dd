"""What all hosts share: a judge that is loaded once, frames as the judge takes them, scores as Python floats.

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

Result = TypeVar("Result")
JudgeLike = VideoJudgeReward | str | Path
"""A judge, or what `VideoJudgeReward.from_pretrained` loads: a folder, a hub id, or "toy" for the embedded one."""

OVERSHOOT = 0.5
"""How far outside [-1, 1] a decoder's output may lie and be clamped; frames in 0..255 do not hide in this."""


@dataclass(frozen=True)
class HostScores:
    """Scores of B videos.

    Attributes:
        rewards: B; NaN where the reward could not be had.
        parts: dimension -> B, NaN likewise.
        reasons: B; why there is no reward, empty where there is one.
    """

    rewards: list[float]
    parts: dict[str, list[float]]
    reasons: list[str]

    def or_raise(self, advice: str = "") -> HostScores:
        """Return these scores, for hosts to which a missing reward cannot be told.

        Args:
            advice: what else the user should know.

        Returns:
            The same scores.

        Raises:
            RuntimeError: a reward is missing.
        """
        bad = [f"video {row}: {reason}" for row, reason in enumerate(self.reasons) if reason]
        if bad:
            raise RuntimeError(
                f"{len(bad)} of {len(self.reasons)} rewards could not be had: {'; '.join(bad)}. {advice}"
            )
        return self


_LOADING = Lock()


def load_judge(
    judge: JudgeLike, *, device: str | torch.device | None = None, dtype: str | torch.dtype = "auto"
) -> VideoJudgeReward:
    """Return a judge; the same path, device and dtype give the same one, however often and from where hosts ask.

    Args:
        judge: loaded, or where it is; one that is loaded stays where it is.
        device: where to load it; None as `VideoJudge.from_pretrained`.
        dtype: of the weights; "auto" keeps the stored one.

    Returns:
        The judge, frozen.
    """
    if not isinstance(judge, (str, Path)):
        return judge
    with _LOADING:  # hosts call from many threads, and a large judge fits only once
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
        videos: as in a call of the judge; a tensor [B, C, H, W] holds stills, which are clips of one frame.
        prompts: one each, or one for all.
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
    """Return the scores of a judge's answer, whose rewards have these weights."""
    rewards = out.rewards.tolist()
    return HostScores(
        rewards=rewards,
        parts={name: values.tolist() for name, values in out.scores.items()},
        reasons=["" if math.isfinite(value) else _reason(out, row, weights) for row, value in enumerate(rewards)],
    )


def _reason(out: RewardOutput, row: int, weights: Mapping[str, float] | None) -> str:
    names = weights if weights is not None else out.reasons
    return next((out.reasons[name][row] for name in names if out.reasons[name][row]), "no finite score")


def with_time(frames: Tensor) -> Tensor:
    """Return stills [B, C, H, W] as clips of one frame [B, 1, C, H, W]; clips stay as they are."""
    return frames.unsqueeze(1) if frames.ndim == 4 else frames


def from_signed(frames: Tensor) -> Tensor:
    """Bring frames from [-1, 1] to [0, 1] with their gradient; what a decoder overshoots is clamped.

    Args:
        frames: any shape.

    Returns:
        The same shape in [0, 1].

    Raises:
        ValueError: values that are not of [-1, 1], or not finite.
    """
    low, high = frames.detach().amin().item(), frames.detach().amax().item()
    if not (low >= -1 - OVERSHOOT and high <= 1 + OVERSHOOT):
        raise ValueError(f"frames must lie in [-1, 1], got [{low:.3g}, {high:.3g}]; hand over the decoder's own output")
    return ((frames + 1) / 2).clamp(0, 1)


def in_thread(function: Callable[..., Result]) -> Callable[..., Coroutine[Any, Any, Result]]:
    """Return a coroutine function that runs `function` in a thread, for hosts that await their rewards."""

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Result:
        """Run the function in a thread and wait for it."""
        return await asyncio.to_thread(function, *args, **kwargs)

    return call
