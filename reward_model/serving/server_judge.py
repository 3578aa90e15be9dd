"""The judge as the server uses it: videos are read in several threads, and questions of one kind answered in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from reward_model.comparing import compare_clips
from reward_model.explanation import explain_clip
from reward_model.media.containers import is_container
from reward_model.media.intake import MOTION_SIDE, to_clips
from reward_model.media.trained_range import unlike_training
from reward_model.media.video_io import MediaLimits, read_video
from reward_model.records import Clip, RewardOutput, VideoError
from reward_model.score_sheet import ScoreSheet
from reward_model.scoring import check_asked, score_rows
from reward_model.serving import wire
from reward_model.serving.server_schema import FileVideo, FramesVideo
from reward_model.serving.server_settings import ServerSettings
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
        self._reader = _ClipReader(reward.judge, role=reward.role, allow_damaged=reward.allow_damaged)
        self._comparator = COMPARATOR if COMPARATOR in self.roles else reward.role
        self._settings = settings

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
            if isinstance(video, FramesVideo):
                return self._reader.read_frames(video, self._settings)
            return self._reader.read_file(video, self._settings)
        except VideoError as error:
            return str(error)

    def answer(self, work: Work, questions: Sequence[Question]) -> list[wire.Row]:
        """Answer questions of one kind together.

        Args:
            work: what is asked.
            questions: at most a batch.

        Returns:
            One row each.

        Raises:
            ValueError: settings that this judge refuses.
        """
        judge, prompts = self._reader.judge, [question.prompt for question in questions]
        first = [question.clips[0] for question in questions]
        if isinstance(work, Scoring):
            return wire.score_rows(self._reader.score(first, prompts, work), prompts)
        if isinstance(work, Comparing):
            second = [question.clips[1] for question in questions]
            found = compare_clips(
                judge, self._comparator, first, second, prompts, swap=work.swap, batch_size=len(first)
            )
            return wire.comparison_rows(found, prompts)
        with judge.use_role(self._reader.role):
            return [
                wire.unexplained_row(clip, prompt)
                if isinstance(clip, str)
                else wire.explanation_row(explain_clip(judge, clip, prompt), prompt)
                for clip, prompt in zip(first, prompts, strict=True)
            ]


class _ClipReader(VideoJudgeReward):
    """A judge whose reading of videos and whose scoring of what was read are two steps, for two threads."""

    def score(self, clips: Sequence[Clip | str], prompts: Sequence[str | None], work: Scoring) -> RewardOutput:
        """Score clips that were read beforehand, in one forward pass."""
        weights = None if work.weights is None else dict(work.weights)
        dims = check_asked(
            self.judge,
            dimensions=work.dimensions,
            weights=weights,
            readout=work.readout,
            num_samples=work.num_samples,
        )
        sheet = ScoreSheet(dims, len(clips), self.judge.device)
        rows = [(row, clip, prompt) for row, (clip, prompt) in enumerate(zip(clips, prompts, strict=True))]
        with torch.no_grad(), self.judge.use_role(self.role):
            score_rows(self.judge, sheet, rows, work.readout, work.num_samples)
        known = self.judge.config.trained_range
        plans = [None if isinstance(clip, str) else clip.plan for clip in clips]
        warnings = [() if isinstance(clip, str) else unlike_training(clip, known) for clip in clips]
        return sheet.output(plans, weights, work.normalize, self.judge.config.calibration, warnings)

    def read_frames(self, video: FramesVideo, settings: ServerSettings) -> Clip | str:
        frames = wire.decode_frames(video.frames)
        num, _, height, width = frames.shape
        _check_size(num, num / video.fps, settings)
        if height * width > settings.max_frame_pixels or num * height * width > settings.max_clip_pixels:
            raise VideoError(f"too large: {num} x {width}x{height} pixels")
        (clip,) = to_clips([frames], policy=self.frame_policy, fps=video.fps, motion=self._motion)
        return clip

    def read_file(self, video: FileVideo, settings: ServerSettings) -> Clip:
        data = wire.decode_bytes(video.file)
        if not is_container(data):
            raise ValueError(
                "not a video file: expected MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, Ogg, ASF or GIF bytes"
            )
        limits = MediaLimits(
            max_frame_pixels=settings.max_frame_pixels,
            max_frames=settings.max_frames,
            max_kept_pixels=settings.max_clip_pixels,
        )
        read, plan = read_video(data, policy=self.frame_policy, allow_damaged=self.allow_damaged, limits=limits)
        _check_size(0, plan.times[-1], settings)
        clip = Clip(frames=read.frames, plan=plan)
        if self._motion is None:
            return clip
        dense, _ = read_video(data, max_side=MOTION_SIDE, allow_damaged=self.allow_damaged, limits=limits)
        return replace(clip, motion=self._motion.encode(dense.frames, dense.fps))


def _check_size(num_frames: int, seconds: float, settings: ServerSettings) -> None:
    if num_frames > settings.max_frames:
        raise VideoError(f"too long: more than {settings.max_frames} frames")
    if seconds > settings.max_seconds:
        raise VideoError(f"too long: {seconds:.4g} s, more than {settings.max_seconds:g} s")
