"""The judge as the server uses it: videos are read in several threads, and questions of one kind answered in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from reward_model.media.containers import is_container
from reward_model.media.intake import plan_clip, to_clips
from reward_model.media.motion_encoders import encoder_of
from reward_model.media.video_io import MediaLimits
from reward_model.records import Clip, RewardOutput, VideoError
from reward_model.scoring.compare import compare_clips
from reward_model.scoring.explain import explain_clip
from reward_model.scoring.json_records import (
    JsonRecord,
    comparison_records,
    explanation_record,
    output_records,
    unexplained_record,
)
from reward_model.scoring.score import ClipToScore, open_assembler, score_batch
from reward_model.serving import wire
from reward_model.serving.server.schema import FileVideo, FramesVideo
from reward_model.serving.server.settings import ServerSettings
from reward_model.video_reward import VideoJudgeReward

COMPARATOR = "comparator"
"""Role that compares, where the judge has it."""


@dataclass(frozen=True)
class Scoring:
    """Settings of a score; clips of equal settings share a forward pass."""

    dimensions: tuple[str, ...] | None
    weights: tuple[tuple[str, float], ...] | None
    readout: Literal["level", "reason"]
    num_samples: int
    normalize: Literal["unit", "raw", "z"]


@dataclass(frozen=True)
class Comparing:
    """Settings of a comparison."""

    swap: bool


@dataclass(frozen=True)
class Explaining:
    """An explanation has no settings."""


Work = Scoring | Comparing | Explaining


@dataclass(frozen=True)
class Question:
    """One clip to score or explain, or two to compare, read or with the reason why not."""

    clips: tuple[Clip | str, ...]
    prompt: str | None


class ServedJudge:
    """Reads videos within limits, in any thread, and answers questions, in one thread at a time."""

    def __init__(self, reward: VideoJudgeReward, settings: ServerSettings) -> None:
        """Share a judge's weights.

        Args:
            reward: the judge, in the role that scores and explains.
            settings: limits of a video.
        """
        self.dimensions, self.roles = tuple(reward.judge.config.dimensions), tuple(reward.judge.roles)
        self._judge, self._role, self._settings = reward.judge, reward.role, settings
        self._comparator = COMPARATOR if COMPARATOR in self.roles else reward.role
        self._policy, self._allow_damaged = reward.frame_policy, reward.allow_damaged
        self._motion = encoder_of(reward.judge.config.motion)

    def read(self, video: FileVideo | FramesVideo) -> Clip | str:
        """Return the clip that the judge is to see.

        Args:
            video: of a request.

        Returns:
            The planned clip, or the reason why it cannot be had: damage, or a limit.

        Raises:
            ValueError: what was sent is no video.
        """
        try:
            return self._read_frames(video) if isinstance(video, FramesVideo) else self._read_file(video)
        except VideoError as error:
            return str(error)

    def _read_frames(self, video: FramesVideo) -> Clip | str:
        settings, frames = self._settings, wire.decode_frames(video.frames)
        num, _, height, width = frames.shape
        _check_size(num, num / video.fps, settings)
        if height * width > settings.max_frame_pixels or num * height * width > settings.max_clip_pixels:
            raise VideoError(f"too large: {num} x {width}x{height} pixels")
        (clip,) = to_clips([frames], policy=self._policy, fps=video.fps, motion=self._motion)
        return clip

    def _read_file(self, video: FileVideo) -> Clip:
        settings, data = self._settings, wire.decode_bytes(video.file)
        if not is_container(data):
            raise ValueError(
                "not a video file: expected MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, Ogg, ASF or GIF bytes"
            )
        limits = MediaLimits(
            max_frame_pixels=settings.max_frame_pixels,
            max_frames=settings.max_frames,
            max_kept_pixels=settings.max_clip_pixels,
        )
        clip = plan_clip(data, self._policy, motion=self._motion, allow_damaged=self._allow_damaged, limits=limits)
        _check_size(0, clip.plan.times[-1], settings)
        return clip

    def answer(self, work: Work, questions: Sequence[Question]) -> list[JsonRecord]:
        """Answer questions of one kind together.

        Args:
            work: what is asked.
            questions: at most a batch.

        Returns:
            One row each.

        Raises:
            ValueError: settings that this judge refuses.
        """
        prompts = [question.prompt for question in questions]
        first = [question.clips[0] for question in questions]
        if isinstance(work, Scoring):
            return output_records(self._score(first, prompts, work), prompts)
        if isinstance(work, Comparing):
            second = [question.clips[1] for question in questions]
            found = compare_clips(
                self._judge, self._comparator, first, second, prompts, swap=work.swap, batch_size=len(first)
            )
            return comparison_records(found, prompts)
        with self._judge.use_role(self._role):
            return [
                unexplained_record(clip, prompt)
                if isinstance(clip, str)
                else explanation_record(explain_clip(self._judge, clip, prompt), prompt)
                for clip, prompt in zip(first, prompts, strict=True)
            ]

    def _score(self, clips: Sequence[Clip | str], prompts: Sequence[str | None], work: Scoring) -> RewardOutput:
        weights = None if work.weights is None else dict(work.weights)
        assembler = open_assembler(
            self._judge,
            self._role,
            len(clips),
            dimensions=work.dimensions,
            weights=weights,
            readout=work.readout,
            num_samples=work.num_samples,
        )
        batch = [ClipToScore(index, *given) for index, given in enumerate(zip(clips, prompts, strict=True))]
        with torch.no_grad(), self._judge.use_role(self._role):
            score_batch(self._judge, assembler, batch, work.readout, work.num_samples)
        return assembler.output(weights, work.normalize)


def _check_size(num_frames: int, seconds: float, settings: ServerSettings) -> None:
    if num_frames > settings.max_frames:
        raise VideoError(f"too long: more than {settings.max_frames} frames")
    if seconds > settings.max_seconds:
        raise VideoError(f"too long: {seconds:.4g} s, more than {settings.max_seconds:g} s")
