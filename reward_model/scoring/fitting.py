"""Clips that a judge's family can take, told from the others before they share a batch.

A file may be whole and yet of a shape that the family refuses; only that clip goes without a score.
"""

from __future__ import annotations

from dataclasses import replace

from reward_model.judge.engine.batching import clip_grid, shown_size
from reward_model.judge.families.base import VisionFamily, shrink_whole
from reward_model.media.shelf import as_float, in_8_bits
from reward_model.records import Clip, VideoError


def fitting(clip: Clip | str, family: VisionFamily) -> Clip | str:
    """Return a planned clip that the family can take, or the reason why it cannot be judged.

    Args:
        clip: planned clip, or the reason why it is unreadable.
        family: the judge's.

    Returns:
        The clip or a reason.
    """
    if isinstance(clip, str):
        return clip
    try:
        clip_grid(clip, family)
    except VideoError as error:
        return str(error)
    return clip


def shown(clip: Clip | str, family: VisionFamily) -> Clip | str:
    """Return a clip whose frames are no larger than the judge is shown them, with equal 8-bit pixels then.

    Args:
        clip: planned clip that the family can take, or a reason; one that is not of 8 bits stays as it is.
        family: the judge's.

    Returns:
        The clip or the reason.
    """
    if isinstance(clip, str):
        return clip
    size, (height, width) = shown_size(clip, family), clip.frames.shape[-2:]
    if size[0] * size[1] >= height * width or (pixels := in_8_bits(clip.frames.detach())) is None:
        return clip
    return replace(
        clip, frames=as_float(shrink_whole(pixels, size)), source_size=clip.source_size or (int(height), int(width))
    )
