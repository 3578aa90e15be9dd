"""Endless, seeded sources of rated clips for training; stored clips as safetensors.

Shapes: N clips, T frames, C = 3, H, W pixels.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reward_model.datasets.readers import LISTED, DataConfig
from reward_model.judge.model import VideoJudge
from reward_model.media.frame_sampling import FramePolicy
from reward_model.media.intake import plan_clip
from reward_model.media.motion_encoders import encoder_of
from reward_model.records import Annotation, Clip, RatedClip, Video, VideoPair
from reward_model.toy_world import moving_shapes

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

Source = Callable[[int, int], Sequence[Annotation]]
"""source(seed, num) -> examples that show about num clips, a pair counting as two; neighbouring clips share their prompt
where the data has such clips. The same for the same arguments."""


def open_source(config: DataConfig, *, held_out: bool = False) -> Source:
    """Return the source that a data section names.

    Args:
        config: the section.
        held_out: draw what training never sees: scenes held out by `moving_shapes.split`, or, of listed examples, the
            tenth of the sources that `is_held_out` names.

    Returns:
        The source.

    Raises:
        ValueError: nothing is left on the asked side of the split.
    """
    if config.kind == "moving_shapes":
        scenes = moving_shapes.split(moving_shapes.CORE)[int(held_out)]
        clips: Source = partial(_render_pairs, scenes, config.clean_share, tuple(config.dimensions))
        if config.num_clips and not held_out:
            clips = partial(_draw_listed, clips(0, config.num_clips))
        return partial(_draw_images, clips) if config.images else clips
    listed = LISTED[config.kind](config)
    chosen = [example for example in listed if is_held_out(example.source_id) == held_out]
    if not chosen:
        raise ValueError(f"{config.path} has nothing {'to hold out' if held_out else 'to train on'} of {len(listed)}")
    return partial(_draw_listed, sorted(chosen, key=_place))


def _place(example: Annotation) -> tuple[str, str]:
    """Sort by kind, and clips of one prompt next to each other."""
    return type(example).__name__, (example.prompt or "") if isinstance(example, RatedClip) else ""


def is_held_out(source_id: str) -> bool:
    """Return whether a source is in the held-out tenth, by its name's hash, the same on every machine."""
    return hashlib.sha256(source_id.encode()).digest()[0] % 10 == 0


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


def _render_pairs(
    scenes: Sequence[moving_shapes.Scene], clean_share: float, dimensions: Sequence[str], seed: int, num: int
) -> list[RatedClip]:
    clips = moving_shapes.sample_rated(num, seed=seed, scenes=scenes, clean_share=clean_share, group_size=2)
    return [rated_on(clip, dimensions) if dimensions else clip for clip in clips]


def rated_on(rated: RatedClip, dimensions: Sequence[str]) -> RatedClip:
    """Return a clip of which only these dimensions' quality and faults are known."""
    quality = {name: value for name, value in rated.quality.items() if name in dimensions}
    every: Any = rated.facts["faults"]
    faults = {name: found for name, found in every.items() if name in dimensions}
    return replace(rated, quality=quality, facts={**rated.facts, "faults": faults})


def _draw_images(clips: Source, seed: int, num: int) -> list[Annotation]:
    return [middle_frame(clip) for clip in clips(seed, num) if isinstance(clip, RatedClip)]


def middle_frame(rated: RatedClip) -> RatedClip:
    """Return a rendered clip's middle frame as an image without prompt, rated on visual quality alone."""
    video = rated.video
    assert isinstance(video, Video)
    middle = len(video.frames) // 2
    still = Video(video.frames[middle : middle + 1], video.fps, source=video.source)
    return replace(rated_on(rated, ["visual_quality"]), video=still, prompt=None)


def _draw_listed(examples: Sequence[Annotation], seed: int, num: int) -> list[Annotation]:
    """Draw pairs of neighbours, or one labelled pair in place of two."""
    rng = random.Random(seed)
    found: list[Annotation] = []
    for _ in range((num + 1) // 2):
        start = rng.randrange(max(1, len(examples) - 1))
        if isinstance(examples[start], VideoPair):
            found.append(examples[start])
        else:
            found += [e for e in examples[start : start + 2] if not isinstance(e, VideoPair)]
    return found[:num]


def clip_planner(judge: VideoJudge) -> Callable[[Video | Path], Clip]:
    """Return the function that reads and plans a video the way this judge sees clips; an image is a clip of one frame."""
    policy, motion = FramePolicy.from_dict(judge.config.frame_policy), encoder_of(judge.config.motion)

    def plan(video: Video | Path) -> Clip:
        """Return the clip as the judge sees it."""
        still = isinstance(video, Path) and video.suffix.lower() in IMAGE_SUFFIXES
        return plan_clip(video, None if still else policy, motion=motion)

    return plan
