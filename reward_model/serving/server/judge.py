"""The judge as the server uses it: it reads videos in several threads, and answers jobs in batches in one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reward_model.media.containers import is_animated_webp, is_container
from reward_model.media.decoders import Source, open_video
from reward_model.media.frame_sampling import take
from reward_model.media.intake import plan_clip, to_clips
from reward_model.media.motion_encoders import encoder_of
from reward_model.media.video_io import MediaLimits, stated_size
from reward_model.records import Clip, RewardOutput, Video, VideoError
from reward_model.scoring.compare import compare_clips
from reward_model.scoring.explain import explain_clip
from reward_model.scoring.fitting import fitting
from reward_model.scoring.json_records import (
    JsonRecord,
    comparison_records,
    explanation_record,
    output_records,
    unexplained_record,
)
from reward_model.scoring.score import ClipToScore, open_assembler, score_batch
from reward_model.serving import wire
from reward_model.serving.options import CompareOptions, RequestOptions, ScoreOptions
from reward_model.serving.server.config import ServerConfig
from reward_model.serving.server.schema import FileVideo, FramesVideo
from reward_model.serving.server.shrink import (
    SHOWN_BYTES,
    SOURCE_BYTES,
    Shrinker,
    as_float,
    motion_bytes,
    sent_bytes,
    shown_size,
)
from reward_model.video_reward import VideoJudgeReward

if TYPE_CHECKING:
    from av.packet import Packet

COMPARATOR = "comparator"
"""Role for comparisons, if the judge has it."""


@dataclass(frozen=True)
class JudgeJob:
    """One clip to score or explain, or two to compare; a string instead of a clip is the reason why it is unreadable."""

    clips: tuple[Clip | str, ...]
    prompt: str | None


@dataclass(frozen=True)
class Room:
    """Bytes of one video: `kept` until it is answered, `reading` more while it is read."""

    kept: int
    reading: int


class JudgeService:
    """Reads videos within limits, from any thread, and answers jobs, from one thread at a time."""

    def __init__(self, reward: VideoJudgeReward, config: ServerConfig) -> None:
        """Share the weights of a judge.

        Args:
            reward: the judge, in the role that scores and explains.
            config: limits of a video.
        """
        self.dimensions, self.roles = tuple(reward.judge.config.dimensions), tuple(reward.judge.roles)
        self._judge, self._role, self._config = reward.judge, reward.role, config
        self._comparator = COMPARATOR if COMPARATOR in self.roles else reward.role
        self._policy, self._allow_damaged = reward.frame_policy, reward.allow_damaged
        self._motion = encoder_of(reward.judge.config.motion)

    def room(self, video: FileVideo | FramesVideo) -> Room:
        """Return the bytes that a video will need, by its header; none for one that `read` will refuse.

        Args:
            video: video of a request.

        Returns:
            The bytes.

        Raises:
            ValueError: the bytes are not a video.
        """
        policy, family = self._policy, self._judge.family
        most = max(policy.max_frames, policy.num_frames + policy.num_fast_frames)
        try:
            if isinstance(video, FramesVideo):
                frames = wire.decode_frames(video.frames)
                num, _, height, width = frames.shape
                reading = sent_bytes(frames, min(num, most), moves=self._motion is not None)
            else:
                file = self._file(video)
                stated, height, width = stated_size(file)
                num = stated or most
                reading = height * width * SOURCE_BYTES
                if self._motion is not None:
                    counted = stated if is_animated_webp(file) else _num_packets(file, self._config.max_frames)
                    reading += motion_bytes(counted, height, width)
            if height * width > self._config.max_frame_pixels:
                return Room(0, 0)
            num = max(min(num, most), 1)
            shown = shown_size(family, num, height, width)
        except VideoError:
            return Room(0, 0)
        return Room(num * max(shown[0] * shown[1], 1) * SHOWN_BYTES, reading)

    def read(self, video: FileVideo | FramesVideo) -> Clip | str:
        """Return the clip that the judge sees.

        Args:
            video: video of a request.

        Returns:
            The planned clip; or the reason if the video is damaged or beyond a limit.

        Raises:
            ValueError: the bytes are not a video.
        """
        try:
            clip = self._read_frames(video) if isinstance(video, FramesVideo) else self._read_file(video)
        except VideoError as error:
            return str(error)
        return fitting(clip, self._judge.family)

    def _read_frames(self, video: FramesVideo) -> Clip | str:
        config, frames = self._config, wire.decode_frames(video.frames)
        num, _, height, width = frames.shape
        _check_size(num, num / video.fps, config)
        if height * width > config.max_frame_pixels or num * height * width > config.max_clip_pixels:
            raise VideoError(f"too large: {num} x {width}x{height} pixels")
        if frames.is_floating_point() and not torch.isfinite(frames).all():
            raise VideoError("frames hold values that are not finite")
        clip: Clip | str
        if frames.dtype == torch.uint8 and self._motion is None and frames.shape[1] == 3:
            clip = take(Video(frames, float(video.fps)), self._policy)
        else:
            (clip,) = to_clips([frames], policy=self._policy, fps=video.fps, motion=self._motion)
        return clip if isinstance(clip, str) else Shrinker(self._judge.family).clip(clip)

    def _read_file(self, video: FileVideo) -> Clip:
        config, data, shrinker = self._config, self._file(video), Shrinker(self._judge.family)
        limits = MediaLimits(
            max_frame_pixels=config.max_frame_pixels,
            max_frames=config.max_frames,
            max_kept_pixels=config.max_clip_pixels,
        )
        clip = plan_clip(
            data,
            self._policy,
            motion=self._motion,
            allow_damaged=self._allow_damaged,
            limits=limits,
            fit=shrinker.fit,
        )
        _check_size(0, clip.plan.times[-1], config)
        return shrinker.clip(clip)

    @staticmethod
    def _file(video: FileVideo) -> bytes:
        data = wire.decode_bytes(video.file)
        if not is_container(data):
            raise ValueError(
                "not a video file: expected MP4, MOV, Matroska, WebM, AVI, MPEG, H.264, H.265, IVF, FLV, Ogg, ASF, GIF, "
                "animated PNG or animated WebP bytes"
            )
        return data

    def answer(self, options: RequestOptions, jobs: Sequence[JudgeJob]) -> list[JsonRecord]:
        """Answer jobs with equal options in one batch.

        Args:
            options: options that the jobs have in common.
            jobs: at most `batch_size` jobs.

        Returns:
            One record per job.

        Raises:
            ValueError: options that this judge refuses.
        """
        prompts = [job.prompt for job in jobs]
        first = [_for_judge(job.clips[0]) for job in jobs]
        if isinstance(options, ScoreOptions):
            return output_records(self._score(first, prompts, options), prompts)
        if isinstance(options, CompareOptions):
            second = [_for_judge(job.clips[1]) for job in jobs]
            comparison = compare_clips(
                self._judge, self._comparator, first, second, prompts, swap=options.swap, batch_size=len(jobs)
            )
            return comparison_records(comparison, prompts)
        with self._judge.use_role(self._role):
            return [
                unexplained_record(clip, prompt)
                if isinstance(clip, str)
                else explanation_record(explain_clip(self._judge, clip, prompt), prompt)
                for clip, prompt in zip(first, prompts, strict=True)
            ]

    def _score(self, clips: Sequence[Clip | str], prompts: Sequence[str | None], options: ScoreOptions) -> RewardOutput:
        assembler = open_assembler(
            self._judge,
            self._role,
            len(clips),
            dimensions=options.dimensions,
            weights=options.weight_of,
            readout=options.readout,
            num_samples=options.num_samples,
        )
        batch = [ClipToScore(index, *given) for index, given in enumerate(zip(clips, prompts, strict=True))]
        with torch.no_grad(), self._judge.use_role(self._role):
            score_batch(self._judge, assembler, batch, options.readout, options.num_samples)
        return assembler.output(options.weight_of, options.normalize)


def _for_judge(clip: Clip | str) -> Clip | str:
    return clip if isinstance(clip, str) else as_float(clip)


def _num_packets(file: Source, most: int) -> int:
    """Return the number of packets of a file that have content, up to `most`; VideoError if it is no video."""
    with open_video(file) as (container, stream):
        return _count(container.demux(stream), most)


def _count(packets: Iterable[Packet], most: int) -> int:
    """Return the number of packets with content, counted and not as a header names it, up to `most`."""
    return sum(1 for _ in itertools.islice((one for one in packets if one.size), most))


def _check_size(num_frames: int, seconds: float, config: ServerConfig) -> None:
    if num_frames > config.max_frames:
        raise VideoError(f"too long: more than {config.max_frames} frames")
    if seconds > config.max_seconds:
        raise VideoError(f"too long: {seconds:.4g} s, more than {config.max_seconds:g} s")
