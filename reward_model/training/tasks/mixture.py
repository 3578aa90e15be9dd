"""Mixtures of data sections, drawn by seed, and the planner that shows a judge their clips."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from reward_model.datasets.readers import DataConfig, open_source
from reward_model.datasets.sources import Source
from reward_model.judge.model import VideoJudge
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.intake import plan_clip
from reward_model.media.motion_encoders import encoder_of
from reward_model.records import Annotation, Clip, Video

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def open_mixture(configs: Sequence[DataConfig], *, held_out: bool = False) -> Source:
    """Return the source that draws every pair of clips from one of the sections by weight."""
    sources = [open_source(config, held_out=held_out) for config in configs]
    weights = [config.weight for config in configs]

    def draw(seed: int, num: int) -> list[Annotation]:
        """Draw every pair of clips from one of the sections."""
        chosen = random.Random(seed).choices(range(len(sources)), weights, k=(num + 1) // 2)
        with torch.autocast("cpu", enabled=False):  # clips are what they are whatever precision the judge runs in
            return [e for i, source in enumerate(sources) for e in source(seed, 2 * chosen.count(i))][:num]

    return draw


def clip_planner(judge: VideoJudge) -> Callable[[Video | Path], Clip]:
    """Return the function that reads and plans a video the way this judge sees clips; an image is a clip of one frame."""
    policy, motion = FramePolicy.from_dict(judge.config.frame_policy), encoder_of(judge.config.motion)

    def plan(video: Video | Path) -> Clip:
        """Return the clip as the judge sees it."""
        still = isinstance(video, Path) and video.suffix.lower() in IMAGE_SUFFIXES
        return plan_clip(video, None if still else policy, motion=motion)

    return plan
