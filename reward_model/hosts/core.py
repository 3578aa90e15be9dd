"""Shared by all hosts: a judge that is loaded once, frames in the judge's format, scores as Python floats.

Shapes: B videos, T frames, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

import asyncio
import functools
import math
import traceback
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

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

OnMissing = Literal["nan", "raise", "stop"]
"""Treatment of a missing reward: "nan" keeps it and warns of the reason, "raise" raises RuntimeError, "stop" ends the process by
`TrainingStop`, for hosts that neither check rewards nor let an exception through."""


class TrainingStop(SystemExit):
    """End of a training process whose host has no value for a missing reward.

    A host's `except Exception` does not catch it. The process exits with status 1, upon which `torchrun` ends the others, and
    prints the reason.
    """


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
        return self.checked("raise", advice)

    def checked(self, on_missing: OnMissing, advice: str = "") -> HostScores:
        """Return these scores; treat a missing reward as the host needs it.

        Args:
            on_missing: "nan", "raise" or "stop".
            advice: last sentence of the message.

        Returns:
            The same scores.

        Raises:
            RuntimeError: a reward is missing, with "raise".
            TrainingStop: a reward is missing, with "stop".
        """
        report_missing(self.reasons, on_missing, advice)
        return self


def report_missing(reasons: Sequence[str], on_missing: OnMissing, advice: str = "") -> None:
    """Warn, raise or stop if a reward is missing.

    Args:
        reasons: B; why each reward is missing, empty where it is not.
        on_missing: "nan" warns, "raise" raises, "stop" ends the process.
        advice: last sentence of the message.

    Raises:
        ValueError: another treatment.
        RuntimeError: a reward is missing, with "raise".
        TrainingStop: a reward is missing, with "stop".
    """
    if on_missing not in get_args(OnMissing):
        raise ValueError(f"on_missing must be one of {', '.join(get_args(OnMissing))}, got {on_missing!r}")
    missing = [f"video {index}: {reason}" for index, reason in enumerate(reasons) if reason]
    if not missing:
        return
    message = f"{len(missing)} of {len(reasons)} rewards are unavailable: {'; '.join(missing)}. {advice}".rstrip()
    if on_missing == "stop":
        raise TrainingStop(message)
    if on_missing == "raise":
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=3)


def stopping(function: Callable[..., ReturnT]) -> Callable[..., ReturnT]:
    """Return the function with each of its exceptions raised as `TrainingStop`, for hosts that would score it instead.

    Args:
        function: a reward function; called by a host that catches exceptions and goes on with a made-up reward.

    Returns:
        The function; its `TrainingStop` holds the traceback.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> ReturnT:
        """Call the function; an exception ends the process."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise TrainingStop(f"the reward failed: {error}\n{traceback.format_exc()}") from error

    return call


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
