"""Endless rated clips of the moving-shapes world, rendered as they are drawn.

Shapes: T frames, C = 3, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from reward_model.datasets.sources import Listed, Part, Source
from reward_model.records import Annotation, RatedClip, Video
from reward_model.toy_world import moving_shapes


def open_moving_shapes(
    *, clean_share: float, images: bool, num_clips: int, dimensions: Sequence[str], part: Part
) -> Source:
    """Return the source of rendered clips, in pairs that share their prompt.

    Args:
        clean_share: share of clips without defects, in [0, 1].
        images: give each clip's middle frame in its place.
        num_clips: train on that many clips, epoch by epoch; 0 renders without end.
        dimensions: rate clips on these alone; empty rates them on all.
        part: of the scenes; all but those to train on are without end. `moving_shapes.split` holds scenes out, and every
            second of these is for selection.

    Returns:
        The source.
    """
    scenes = moving_shapes.split(moving_shapes.CORE)[int(part != "train")]
    if part in ("selection", "report"):
        scenes = scenes[int(part == "report") :: 2]
    clips: Source = partial(_render_pairs, scenes, clean_share, tuple(dimensions))
    clips = partial(_draw_images, clips) if images else clips
    return Listed(clips(0, num_clips)) if num_clips and part == "train" else clips


def rated_on(rated: RatedClip, dimensions: Sequence[str]) -> RatedClip:
    """Return the clip with the quality and the faults of these dimensions alone."""
    quality = {name: value for name, value in rated.quality.items() if name in dimensions}
    every: Any = rated.facts["faults"]
    faults = {name: named for name, named in every.items() if name in dimensions}
    return replace(rated, quality=quality, facts={**rated.facts, "faults": faults})


def middle_frame(rated: RatedClip) -> RatedClip:
    """Return a rendered clip's middle frame as an image without prompt, rated on visual quality alone."""
    video = rated.video
    assert isinstance(video, Video)
    middle = len(video.frames) // 2
    still = Video(video.frames[middle : middle + 1], video.fps, source=video.source)
    return replace(rated_on(rated, ["visual_quality"]), video=still, prompt=None)


def _render_pairs(
    scenes: Sequence[moving_shapes.Scene], clean_share: float, dimensions: Sequence[str], seed: int, num: int
) -> list[RatedClip]:
    clips = moving_shapes.sample_rated(num, seed=seed, scenes=scenes, clean_share=clean_share, group_size=2)
    return [rated_on(clip, dimensions) if dimensions else clip for clip in clips]


def _draw_images(clips: Source, seed: int, num: int) -> list[Annotation]:
    return [middle_frame(clip) for clip in clips(seed, num) if isinstance(clip, RatedClip)]
